"""TensorRT and TensorRT-RTX: engines for NVIDIA GPUs, built from self-describing ONNX files.

:mod:`config` needs no TensorRT, so that mistakes are reported at once; the rest imports it on first
use. Nothing here imports torch.
"""
