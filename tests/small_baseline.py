"""The paper's baseline with one layer of each kind and scale, which is enough for the tests."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache

import pytest

from eomt_deploy.benchmarking.machine import roofline
from eomt_deploy.benchmarking.paper import counting, ladder
from eomt_deploy.benchmarking.paper.baseline import adapter, mask_decoder, pixel_decoder

_count = cache(counting.count_step)


@contextmanager
def small_baseline() -> Iterator[None]:
    """Fewer and narrower layers, one count of each network, peaks of small matrices."""
    # One block before the queries join and one after.
    shallow = replace(ladder.BACKBONES["tiny"], depth=2, blocks=1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(ladder.BACKBONES, "tiny", shallow)
        patch.setattr(adapter, "STAGES", 1)
        patch.setattr(adapter, "EXTRA_EXTRACTORS", 0)
        patch.setattr(pixel_decoder, "LAYERS", 1)
        patch.setattr(mask_decoder, "LAYERS", 3)  # one for each scale
        patch.setattr(pixel_decoder, "HIDDEN", 256)
        patch.setattr(mask_decoder, "HIDDEN", 256)
        patch.setattr(roofline, "CPU_SIDES", (64, 128))
        patch.setattr(roofline, "SECONDS", 0.01)
        patch.setattr(counting, "count_step", _count)
        yield
