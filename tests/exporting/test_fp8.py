"""FP8 layers in PyTorch compute what the FP8 graph says."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import tiny
import torch

from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.errors import DeviceError
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.calibration import observe
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.fp8 import FP8, Fp8Linear, check_fp8, use_fp8
from eomt_deploy.exporting.quantization import QuantizedLayer, insert_qdq, quantize_layers
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.network.folds import fold


@pytest.fixture(scope="module")
def network():
    return fold(tiny.network())


@pytest.fixture(scope="module")
def layers(network):
    return quantize_layers(network, observe(network, [tiny.images(4)]), "fp8", "minmax")


def rounded(values):
    """Values in the range of FP8, rounded to it."""
    return torch.from_numpy(values).to(FP8).float().numpy()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_layer_is_the_product_of_rounded_values(dtype):
    rng = np.random.default_rng(0)
    weight = rounded(rng.normal(size=(32, 48)).astype(np.float32) * 100)
    bias = rng.normal(size=48).astype(np.float32)
    stored = torch.from_numpy(weight).to(FP8).view(torch.uint8).numpy()
    scales = np.float32(0.01), np.float32(0.002)
    layer = QuantizedLayer(scales[0], stored, np.array(scales[1]), bias)
    x = torch.from_numpy(rng.normal(size=(2, 5, 32)).astype(np.float32) * 3).to(dtype)
    x[0, 0, 0] = 99  # 9900 is above the largest value of FP8, 448
    found = Fp8Linear(layer, torch.zeros(1, dtype=dtype))(x)
    assert found.shape == (2, 5, 48)
    assert found.dtype == dtype
    inputs = rounded(np.clip(x.float().numpy() / scales[0], -448, 448)) * scales[0]
    wanted = inputs @ (weight * scales[1]) + bias
    np.testing.assert_allclose(found.float(), wanted, rtol=torch.finfo(dtype).eps, atol=0.02)


@pytest.mark.parametrize(("blocks", "share"), [(1, 1e-4), (tiny.ARCH.depth, 0.5)])
def test_the_network_computes_what_the_graph_says(network, layers, blocks, share):
    """In later blocks, values that one of the two rounds up and the other down change everything
    after them, so the difference is a large share of the loss of FP8 itself."""
    chosen = {k: layer for k, layer in layers.items() if int(k.split(".")[2]) < blocks}
    spec = tiny.spec()
    model = insert_qdq(describe(graph.trace(network, spec), spec), layers, chosen)
    with EmulatedEngine(model) as emulated:
        wanted = emulated.run(tiny.images(3))
    fp8 = copy.deepcopy(network)
    use_fp8(fp8, chosen)
    assert sum(isinstance(m, Fp8Linear) for m in fp8.modules()) == 4 * blocks
    found = NetworkEngine(fp8, spec).run(tiny.images(3))
    plain = NetworkEngine(network, spec).run(tiny.images(3))
    for have, want, exact in zip(found, wanted, plain, strict=True):
        error, lost = (np.sqrt(np.square(want - other).mean()) for other in (have, exact))
        assert error < share * lost


@pytest.mark.parametrize(
    ("capability", "works"), [((8, 6), False), ((8, 9), True), ((12, 0), True)]
)
def test_gpus_without_fp8(monkeypatch, capability, works):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    check_fp8("cpu")
    if works:
        check_fp8("cuda")
        return
    with pytest.raises(DeviceError, match=r"no FP8 tensor cores \(compute capability 8\.6\)"):
        check_fp8("cuda")
