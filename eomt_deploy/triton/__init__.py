"""Model repositories for NVIDIA's Triton Inference Server.

This module imports nothing, since each Python process of the server imports this package.
"""
