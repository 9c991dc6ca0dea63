"""Emulation of low-precision arithmetic on a CPU."""
