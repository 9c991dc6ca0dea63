"""The EoMT network in plain PyTorch: used to export and as the reference, never at run time."""
