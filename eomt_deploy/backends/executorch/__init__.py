"""ExecuTorch, PyTorch for phones and other edge devices: `.pte` programs."""
