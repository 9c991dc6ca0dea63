from __future__ import annotations

import numpy as np
import pytest
from simulated_gpu import SimulatedGpu

from eomt_deploy.cuda.array import OwnedStream
from eomt_deploy.cuda.scratch import Scratch


@pytest.mark.parametrize("seed", range(9))
def test_tables_may_go_once_they_were_given(seed):
    gpu = SimulatedGpu(seed)
    with gpu.active():
        scratch = Scratch(gpu, OwnedStream(gpu))
        values = [np.full(5, number, np.int32) for number in (7, 8)]
        tables = scratch.tables("t", 1, lambda: values)
        for array in values:
            array[:] = 0
        assert [table.copy_to_host().tolist() for table in tables] == [[7] * 5, [8] * 5]


def test_arrays_outlive_their_scratch():
    gpu = SimulatedGpu()
    with gpu.active():
        scratch = Scratch(gpu, OwnedStream(gpu))
        array = scratch.zeros("a", (3,), np.uint8)
        scratch.free()
        del scratch
        assert array.copy_to_host().tolist() == [0, 0, 0]
