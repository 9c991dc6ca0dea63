from __future__ import annotations

from dataclasses import replace

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
import tiny
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.exporting import graph
from eomt_deploy.exporting.calibration import (
    NUMBERS,
    Activations,
    activation_range,
    linear_layers,
    observe,
    smoothing_scales,
)
from eomt_deploy.exporting.config import METHODS
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.quantization import (
    _scale,
    _smallest_output_error,
    insert_qdq,
    quantize_layers,
)
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.exporting.roles import role_of
from eomt_deploy.network.folds import fold

RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def network():
    return fold(tiny.network())


def rms(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.sqrt(np.square(a - b).mean() / np.square(b).mean()))


def test_only_linear_layers_of_the_blocks(lowered):
    quantized = [n for n in lowered("int8").graph if n.op_type == "QuantizeLinear"]
    assert len(quantized) == 4 * tiny.ARCH.depth
    assert {role_of(n) for n in quantized} == {"projection", "mlp"}


@pytest.mark.parametrize(
    ("precision", "stored"), [("int8", ir.DataType.INT8), ("fp8", ir.DataType.FLOAT8E4M3FN)]
)
def test_contents_of_the_graph(lowered, precision, stored):
    graph = lowered(precision).graph
    weights = [v for v in graph.initializers.values() if str(v.name).endswith(".quantized")]
    assert {v.dtype for v in weights} == {stored}
    scales = [v for v in graph.initializers.values() if str(v.name).endswith("_scale")]
    assert {v.dtype for v in scales} == {ir.DataType.FLOAT16}  # like the graph around them
    assert all(np.isfinite(v.const_value.numpy()).all() for v in scales)
    assert all((v.const_value.numpy() > 0).all() for v in scales)
    zeros = [v for v in graph.initializers.values() if str(v.name).endswith("_zero")]
    assert all(not v.const_value.numpy().astype(np.float32).any() for v in zeros)
    per_channel = [v.shape.rank() for v in scales if str(v.name).endswith("weight_scale")]
    assert set(per_channel) == ({1} if precision == "int8" else {0})


@given(st.floats(0, 1e4, width=32))
def test_scales_are_fp16_and_never_clip_more(largest):
    for number in NUMBERS.values():
        scale = _scale(np.float32(largest), number)
        assert scale == np.float16(scale)
        assert scale > 0
        assert scale * number.largest >= np.float32(largest) * (1 - 1e-6)


@settings(deadline=None)
@given(arrays(np.float32, 64, elements=st.floats(-600, 600, width=32)))
def test_formats_round_as_their_types(values):
    assert NUMBERS["int8"].rounded(values).astype(np.int8).astype(np.float32).tolist() == (
        np.clip(np.rint(values), -127, 127).tolist()
    )
    clipped = np.clip(values, -448, 448).astype(ml_dtypes.float8_e4m3fn).astype(np.float32)
    assert NUMBERS["fp8"].rounded(values).tolist() == clipped.tolist()


@pytest.mark.parametrize("method", [m for m in METHODS if m != "output"])
def test_ranges_cut_outliers_unless_disabled(method):
    samples = RNG.normal(size=(4000, 16)).astype(np.float32)
    samples[7, 3] = 200
    activations = Activations(samples, samples.min(0), samples.max(0))
    found = activation_range(activations, method, NUMBERS["int8"])
    assert (found == 200) == (method == "minmax")
    assert 2 < found <= 200


def test_dead_inputs_have_a_range():
    dead = Activations(*(np.zeros(shape, np.float32) for shape in ((8, 4), 4, 4)))
    for method in ("minmax", "mse", "percentile", "entropy"):
        assert activation_range(dead, method, NUMBERS["int8"]) == 0


def test_observed_inputs_are_those_of_the_layers(network):
    images = tiny.images()
    activations = observe(network, [images[:3], images[3:]])
    assert activations.keys() == linear_layers(network).keys()
    seen = []
    layer = linear_layers(network)["backbone.blocks.2.mlp.fc2"]
    handle = layer.register_forward_pre_hook(lambda _, args: seen.append(args[0].numpy()))
    network(torch.from_numpy(images))
    handle.remove()
    found = activations["backbone.blocks.2.mlp.fc2"]
    np.testing.assert_allclose(found.lowest, np.minimum(seen[0].min((0, 1)), 0), rtol=1e-4)
    np.testing.assert_allclose(found.highest, np.maximum(seen[0].max((0, 1)), 0), rtol=1e-4)
    rows = {row.tobytes() for row in np.round(seen[0].reshape(-1, 96), 3)}
    assert np.mean([np.round(row, 3).tobytes() in rows for row in found.samples]) > 0.9


def test_smoothing_scales_balance_inputs_and_weights():
    activations = Activations(
        np.ones((1, 3), np.float32),
        np.array([-100, 0, 0], np.float32),
        np.array([50, 1, 0], np.float32),
    )
    weight = np.array([[1, 1, 1], [-1, -1, 0]], np.float32)
    assert smoothing_scales(activations, weight, 0.5).tolist() == [10, 1, 1]
    assert smoothing_scales(activations, weight, 1).tolist() == [100, 1, 1]


def test_bias_correction_takes_the_mean_error_out(network, traced):
    images = tiny.images(4)
    activations = observe(network, [images])
    wanted = EmulatedEngine(traced()).run(images)
    errors = []
    for correct in (False, True):
        layers = quantize_layers(network, activations, "int8", "minmax", correct_bias=correct)
        # A coarse range, so that the error is larger than rounding noise.
        found = EmulatedEngine(insert_qdq(traced(), layers, layers)).run(images)
        errors.append(rms(found[1], wanted[1]))
    assert errors[1] < errors[0]


@pytest.mark.parametrize("smooth", [0, 0.7])
def test_what_follows_gelu_is_adjusted_exactly(network, traced, smooth):
    images = tiny.images(4)
    layers = quantize_layers(network, observe(network, [images]), "int8", "minmax", smooth=smooth)
    adjusted = {name: layer for name, layer in layers.items() if layer.adjustment}
    assert set(adjusted) == {name for name in layers if name.endswith("mlp.fc2")}
    for name, layer in adjusted.items():
        plain, found = linear_layers(network)[name], layer.adjustment
        assert (found.factor != 1).any() == bool(smooth)
        for values in (found.center, found.factor):
            np.testing.assert_array_equal(values, values.astype(np.float16))
        x = RNG.normal(size=(5, plain.in_features)).astype(np.float32)
        weight = layer.weight * layer.weight_scale
        restored = ((x - found.center) * found.factor) @ weight + layer.bias
        wanted = plain(torch.from_numpy(x)).numpy()
        assert rms(restored, wanted) < 0.03  # only the rounding of the weights remains
    model = insert_qdq(traced(), layers, layers)
    steps = [node.op_type for node in model.graph if "fc2.input" in node.name]
    assert steps.count("Sub") == tiny.ARCH.depth
    assert steps.count("Mul") == (tiny.ARCH.depth if smooth else 0)
    wanted = EmulatedEngine(traced()).run(images)
    for have, want in zip(EmulatedEngine(model).run(images), wanted, strict=True):
        assert rms(have, want) < 0.05


def test_a_range_above_zero_is_used_completely(network):
    """GELU never returns less than -0.17: half of a range around 0 would be unused."""
    activations = observe(network, [tiny.images(4)])
    layers = quantize_layers(network, activations, "int8", "minmax")
    for name, layer in layers.items():
        used = layer.input_scale * NUMBERS["int8"].largest / activations[name].largest.max()
        assert used < 0.6 if layer.adjustment else used == pytest.approx(1, rel=1e-2)


def test_what_nothing_reads_does_not_widen_the_range():
    pruned = fold(tiny.network())
    block = pruned.backbone.layers[0].mlp
    with torch.no_grad():
        block.fc1.weight[:40] *= 300
        block.fc2.weight[:, :40] = 0
    images = tiny.images(4)
    layers = quantize_layers(pruned, observe(pruned, [images]), "int8", "minmax", smooth=0.7)
    model = graph.trace(pruned, tiny.spec())
    model = describe(model, tiny.spec())
    wanted = EmulatedEngine(model).run(images)
    found = EmulatedEngine(insert_qdq(model, layers, layers)).run(images)
    for have, want in zip(found, wanted, strict=True):
        assert rms(have, want) < 0.05


def test_swiglu_and_fp8_are_not_adjusted(network):
    swiglu = fold(tiny.network(replace(tiny.ARCH, mlp="swiglu")))
    for model, precision in ((network, "fp8"), (swiglu, "int8")):
        seen = observe(model, [tiny.images(1)])
        layers = quantize_layers(model, seen, precision, "minmax", smooth=0.7)
        assert {layer.adjustment for layer in layers.values()} == {None}


def test_fewer_layers_less_error(network, traced):
    images = tiny.images(4)
    layers = quantize_layers(network, observe(network, [images]), "int8", "mse")
    wanted = EmulatedEngine(traced()).run(images)[1]
    some = [name for name in layers if ".blocks.2." in name]
    partly = EmulatedEngine(insert_qdq(traced(), layers, some)).run(images)[1]
    wholly = EmulatedEngine(insert_qdq(traced(), layers, layers)).run(images)[1]
    assert 0 < rms(partly, wanted) < rms(wholly, wanted)


def test_the_output_decides_whether_an_outlier_is_kept():
    samples = RNG.normal(size=(512, 16)).astype(np.float32)
    samples[:, 3] *= 200
    activations = Activations(samples, samples.min(0), samples.max(0))
    heavy = RNG.normal(size=(16, 8)).astype(np.float32)
    light = heavy.copy()
    light[3] = 0  # the outliers do not matter
    ranges = [
        _smallest_output_error(activations, weight, weight, NUMBERS["int8"])
        for weight in (heavy, light)
    ]
    assert ranges[0] > 0.5 * samples.max()
    assert ranges[1] < 0.1 * samples.max()


@pytest.mark.gpu
def test_calibration_and_reference_are_the_same_on_a_gpu(monkeypatch):
    if not torch.cuda.is_available():
        pytest.skip("PyTorch has no NVIDIA GPU here")
    network = fold(tiny.network())
    images = [tiny.images(2), tiny.images(1)]
    on_gpu = observe(network, images), NetworkEngine(network, tiny.spec()).run(images[0])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    on_cpu = observe(network, images), NetworkEngine(network, tiny.spec()).run(images[0])
    for name, wanted in on_cpu[0].items():
        found = on_gpu[0][name]
        np.testing.assert_allclose(found.samples, wanted.samples, atol=1e-4)
        np.testing.assert_allclose(found.lowest, wanted.lowest, atol=1e-4)
        np.testing.assert_allclose(found.highest, wanted.highest, atol=1e-4)
    for have, want in zip(on_gpu[1], on_cpu[1], strict=True):
        assert np.abs(have - want).max() < 1e-4 * np.abs(want).max()
