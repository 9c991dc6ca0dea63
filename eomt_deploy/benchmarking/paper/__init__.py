"""The paper's tables: its baseline, the steps to EoMT, and suites that time them."""
