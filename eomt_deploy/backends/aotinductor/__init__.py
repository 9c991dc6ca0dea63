"""AOTInductor, PyTorch's ahead-of-time compiler: `.pt2` packages."""
