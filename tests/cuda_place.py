"""Test setup for CudaProcessor: a model description, outputs, and a device with our kernels."""

from __future__ import annotations

import made_up_logits
import numpy as np
import torch
import torch.nn.functional as F
from host_twin import put

from eomt_deploy.processing.cuda.kernels import Kernels, load_kernels
from eomt_deploy.processing.cuda.processor import CudaProcessor
from eomt_deploy.spec import ModelSpec


def make_spec(task, size=(64, 64), queries=12, classes=5) -> ModelSpec:
    return made_up_logits.make_spec(task, size, queries, classes)


def make_logits(spec: ModelSpec, number: int, seed: int, dtype=np.float32):
    """Class logits with clear winners, and mask logits of smooth overlapping blobs."""
    rng = np.random.default_rng(seed)
    queries = spec.num_queries
    classes = rng.normal(size=(number, queries, len(spec.classes) + 1), scale=4)
    coarse = torch.from_numpy(rng.normal(size=(number, queries, 4, 4), scale=9))
    masks = F.interpolate(coarse, spec.mask_size, mode="bicubic").numpy()
    return classes.astype(dtype), masks.astype(dtype)


class Place:
    """A device with our kernels, and its processors."""

    def __init__(self, device, binary=None) -> None:
        self.device = device
        with device.active():
            self.kernels = Kernels(device, binary) if binary else load_kernels(device)
            self.stream = device.stream()
        self._known = {}

    def processor(self, spec) -> CudaProcessor:
        """One processor for equal models, so that its buffers are reused."""
        key = spec.to_json()
        if key not in self._known:
            self._known[key] = CudaProcessor(spec, self.device, self.stream, kernels=self.kernels)
        return self._known[key]

    def postprocess(self, spec, classes, masks, geometry, thresholds=None):
        return self.processor(spec).postprocess_with(
            put(self.device, classes),
            put(self.device, masks),
            geometry,
            thresholds or spec.thresholds,
        )
