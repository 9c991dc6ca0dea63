from __future__ import annotations

import numpy as np
import pytest
import tiny

from eomt_deploy.backends.emulation.engine import EmulatedEngine
from eomt_deploy.errors import VerificationError
from eomt_deploy.exporting import ExportConfig, export, graph
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.ranges import FP16_MAX, find_islands, measure_ranges
from eomt_deploy.network.folds import fold


@pytest.fixture(scope="module")
def overflowing():
    network = fold(tiny.overflowing())
    return describe(graph.trace(network, tiny.spec()), tiny.spec())


def test_ranges_are_those_of_the_values(traced):
    model = traced()
    images = tiny.images(6)
    ranges = measure_ranges(model, [images[:5], images[5:]])
    assert ranges["network/Cast"] == images.max()
    class_logits, mask_logits = EmulatedEngine(model).run(images)
    # The last operator before the output is reshaped.
    assert ranges["network/MatMul"] == pytest.approx(np.abs(mask_logits).max(), rel=1e-5)
    assert ranges["class_logits"] == pytest.approx(np.abs(class_logits).max(), rel=1e-5)
    assert find_islands(model, ranges) == []


@pytest.mark.parametrize(("batch", "count"), [(1, 3), (2, 3), (2, 1)])
def test_graphs_of_fixed_batch_are_measured_too(traced, batch, count):
    images = tiny.images(count)
    found = measure_ranges(traced(batch), [images])
    wanted = measure_ranges(traced(None), [images])
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        assert found[name] == pytest.approx(value, rel=1e-4)


def test_what_overflows_is_named(overflowing):
    ranges = measure_ranges(overflowing, [tiny.images()])
    islands = {island.tensor: island for island in find_islands(overflowing, ranges)}
    value = islands["backbone.blocks.1.attn.qkv/Add"]
    assert value.magnitude > FP16_MAX
    assert value.reason == "overflows"
    assert value.role == "projection"
    # The attention products read it after Split, Reshape and Transpose.
    assert "backbone.blocks.1.attn/MatMul_2" in value.nodes
    assert islands["backbone.blocks.1.attn.proj.weight"].reason == "loses precision"
    assert all(".blocks.1.attn" in name for name in islands)


def test_fp32_exceptions_fix_what_fails_without_them(overflowing):
    images = tiny.images()
    ranges = measure_ranges(overflowing, [images])
    islands = find_islands(overflowing, ranges)
    names = {name for island in islands for name in island.nodes}
    wanted = EmulatedEngine(overflowing).run(images)
    broken = EmulatedEngine(lower(overflowing, Lowering("fp16"))).run(images)
    fixed = EmulatedEngine(lower(overflowing, Lowering("fp16", islands=names))).run(images)
    assert not np.isfinite(broken[0]).all()
    for found, want in zip(fixed, wanted, strict=True):
        assert np.sqrt(np.square(found - want).mean() / np.square(want).mean()) < 5e-3


def test_a_tensor_close_to_the_limit_counts(traced):
    model = traced()
    ranges = {"backbone.blocks.0/Add": 20_000.0, "backbone.blocks.0/Add_2": 10_000.0}
    (island,) = find_islands(model, ranges)
    assert island.tensor == "backbone.blocks.0/Add"
    assert "comes close" in str(island)
    assert find_islands(model, ranges, headroom=2) == []


def test_export_reports_and_fixes_overflow_or_exits_with_4(tmp_path, cli):
    files = tiny.write(tmp_path, tiny.overflowing())
    target = tmp_path / "m.onnx"
    arguments = [
        "export", files.checkpoint, "--task", "panoptic", "--classes", files.classes,
        "--precision", "fp16", "-o", target,
    ]  # fmt: skip
    code, _, err = cli(*arguments, "--no-islands")
    assert code == 4
    assert "NaN" in err
    assert "--no-islands" in err
    assert not target.exists()
    code, _, err = cli(*arguments)
    assert code == 0, err
    assert "backbone.blocks.1.attn.qkv/Add overflows in FP16" in err
    code, out, _ = cli("inspect", target, "--json")
    assert "backbone.blocks.1.attn.qkv/Add overflows" in out


def test_without_fp32_exceptions_python_raises(tmp_path):
    files = tiny.write(tmp_path, tiny.overflowing())
    config = ExportConfig(
        str(files.checkpoint),
        tmp_path / "m.onnx",
        task="panoptic",
        classes=files.classes,
        precision="fp16",
        islands=False,
    )
    with pytest.raises(VerificationError, match="NaN"):
        export(config)
