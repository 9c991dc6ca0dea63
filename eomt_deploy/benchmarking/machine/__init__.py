"""The machine that is measured: its description, its state and its limits."""
