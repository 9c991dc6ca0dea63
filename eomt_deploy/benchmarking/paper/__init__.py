"""Tables of the paper: the baseline, the steps to EoMT, and suites that time them."""
