"""Low-precision arithmetic emulated on a CPU."""
