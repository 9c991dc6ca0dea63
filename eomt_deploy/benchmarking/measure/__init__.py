"""Clocks, statistics, load scenarios and the verdict on a measurement."""
