"""TensorRT and TensorRT-RTX: engines for NVIDIA GPUs, built from self-describing ONNX files.

:mod:`config` does not import TensorRT, so that invalid options are reported at once; the other
modules import it on first use. Nothing here imports torch.
"""
