"""The families of networks: a small architecture of each. This module does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from eomt_deploy.architecture import Architecture

CLASSES = 5
_SMALL = Architecture(
    width=64, depth=3, heads=1, mlp="gelu", mlp_hidden=96, registers=2, patch_size=16,
    num_queries=60, num_blocks=2, num_classes=CLASSES, num_upscale=2,
)  # fmt: skip
FAMILIES: Mapping[str, Architecture] = {
    "DINOv2": _SMALL,
    "DINOv2 giant": replace(_SMALL, mlp="swiglu"),
    "DINOv3": replace(_SMALL, rope_theta=100.0, norm_eps=1e-5, registers=4),
    "DINOv3 huge": replace(_SMALL, rope_theta=100.0, norm_eps=1e-5, registers=4, mlp="swiglu"),
}
"""Families differ in the position embedding and in the MLP; the sizes of a family do not."""
