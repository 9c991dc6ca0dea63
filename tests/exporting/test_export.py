from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import tiny
import torch

from eomt_deploy import Segmenter
from eomt_deploy.backends import open_engine
from eomt_deploy.backends.emulation.partwise import PartwiseSession
from eomt_deploy.backends.verification import Verification, compare
from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.errors import CheckpointError, OutputError, UsageError, VerificationError
from eomt_deploy.exporting import ExportConfig, export, graph, run, verify
from eomt_deploy.exporting.network import build_network
from eomt_deploy.exporting.reference import NetworkEngine
from eomt_deploy.model_file import read_model_file
from eomt_deploy.spec import METADATA_KEY, TASKS


def config(files, output: Path, **changes) -> ExportConfig:
    base = ExportConfig(str(files.checkpoint), output, task="panoptic", classes=files.classes)
    return replace(base, **changes)


@pytest.mark.parametrize("task", TASKS)
def test_description_travels_inside(exported, task):
    model = read_model_file(exported(task))
    spec = model.spec
    assert (spec.task, spec.image_size, spec.num_queries, spec.num_blocks) == (
        task,
        (64, 64),
        12,
        2,
    )
    assert [(c.name, c.thing) for c in spec.classes] == [
        (c["name"], c["thing"]) for c in tiny.CLASSES
    ]
    assert spec.classes[1].color == (10, 200, 30)
    assert spec.resize == ("windows" if task == "semantic" else "letterbox")
    assert spec.backbone.parameters == sum(p.numel() for p in tiny.network().parameters())
    assert spec.provenance["masked_attention"] == "annealed"
    assert len(spec.provenance["checkpoint_sha256"]) == 64


def test_tensor_contract(exported):
    model = read_model_file(exported("panoptic"))
    shown = {t.name: (t.dtype, t.shape[1:]) for t in (*model.inputs, *model.outputs)}
    assert shown == {
        "images": ("uint8", (64, 64, 3)),
        "class_logits": ("float32", (12, 6)),
        "mask_logits": ("float32", (12, 16, 16)),
    }
    assert all(t.shape[0] == "batch" for t in (*model.inputs, *model.outputs))


def test_the_graph_is_the_network_and_nothing_else(exported):
    model = onnx.load(exported("panoptic"))
    onnx.checker.check_model(model, full_check=True)
    operators = Counter(node.op_type for node in model.graph.node)
    depth, upscales = tiny.ARCH.depth, tiny.ARCH.num_upscale
    # LayerNorm and GELU stay single operators, which backends can fuse and keep precise.
    assert operators["LayerNormalization"] == 2 * depth + 1 + upscales
    assert operators["Gelu"] == depth + 2 + upscales
    assert {o.domain: o.version for o in model.opset_import} == {"": graph.OPSET}
    # One softmax per block, directly after the product of q and k, without a mask or a scale.
    makers = {output: node for node in model.graph.node for output in node.output}
    softmaxes = [node for node in model.graph.node if node.op_type == "Softmax"]
    assert len(softmaxes) == depth
    assert all(makers[node.input[0]].op_type == "MatMul" for node in softmaxes)
    # Masked attention would need a comparison, a selection or a resized mask.
    masking = {"Where", "Less", "Greater", "GreaterOrEqual", "LessOrEqual", "Not", "And", "Or",
               "Resize", "Sigmoid", "ScatterND", "Equal", "If", "RandomUniform"}  # fmt: skip
    assert not masking & operators.keys()
    # Normalisation, LayerScale and attention scale are folded.
    assert not {"Mul", "Div", "Sub", "Sqrt", "Pow"} & operators.keys()


def test_nothing_of_this_machine_is_in_the_file(exported):
    assert str(Path(tiny.__file__).parent).encode() not in exported("panoptic").read_bytes()
    assert b"site-packages" not in exported("panoptic").read_bytes()


@pytest.mark.parametrize("batch", [1, 3])
def test_any_batch_gives_the_same_numbers(exported, files, batch):
    images = np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), np.uint8)
    with torch.inference_mode():
        model = build_network(read_checkpoint(files.checkpoint), (64, 64))
        wanted = model(torch.from_numpy(images))
    with open_engine(exported("panoptic")) as engine:
        for have, want in zip(engine.run(images), wanted, strict=True):
            assert np.abs(have - want.numpy()).max() < 1e-5 * want.abs().max()


def test_fixed_batch(files, tmp_path):
    report = export(config(files, tmp_path / "m.onnx", batch=2))
    assert read_model_file(report.files[0]).inputs[0].shape == (2, 64, 64, 3)
    images = np.random.default_rng(0).integers(0, 256, (3, 64, 64, 3), np.uint8)
    with open_engine(report.files[0]) as engine:
        three = engine.run(images)
        last = engine.run(images[2:])
    assert three[0].shape == (3, 12, 6)
    np.testing.assert_allclose(three[1][2:], last[1], atol=1e-4)


def test_another_size_than_the_trained_one(files, tmp_path):
    report = export(config(files, tmp_path / "m.onnx", size=(48, 96)))
    assert report.spec.image_size == (48, 96)
    assert any("far from the trained size 64x64" in w for w in report.warnings)
    with Segmenter(tmp_path / "m.onnx") as segmenter:
        assert segmenter.predict(np.zeros((50, 70, 3), np.uint8)).size == (50, 70)


def test_native_size_of_a_model_that_is_not_square(tmp_path):
    files = tiny.write(tmp_path, tiny.network(size=(48, 96)))
    with pytest.raises(UsageError, match="--native-size"):
        export(config(files, tmp_path / "m.onnx"))
    with pytest.raises(UsageError, match="has 4x4 patches"):
        export(config(files, tmp_path / "m.onnx", native_size=(64, 64)))
    report = export(config(files, tmp_path / "m.onnx", native_size=(48, 96)))
    assert report.spec.image_size == (48, 96)
    assert not report.warnings
    with pytest.raises(UsageError, match=r"4\.9375x4"):
        export(config(files, tmp_path / "m.onnx", native_size=(79, 64)))


def test_classes_by_the_name_of_their_list(files, tmp_path):
    named = config(files, tmp_path / "m.onnx", classes=Path("coco_panoptic"))
    with pytest.raises(UsageError, match="coco_panoptic has 133 classes, but the checkpoint has"):
        export(named)
    with pytest.raises(UsageError, match=r"neither a file nor a class list(.|\n)*coco_panoptic"):
        export(replace(named, classes=Path("coco_panoptik")))


def test_large_weights_go_to_a_side_file(files, tmp_path, monkeypatch):
    monkeypatch.setattr(graph.save, "__kwdefaults__", {"limit": 1000})
    path = tmp_path / "m.onnx"
    report = export(config(files, path))
    assert [f.name for f in report.files] == ["m.onnx.data", "m.onnx"]
    assert len({f.stat().st_mode for f in report.files}) == 1
    assert read_model_file(path).bytes == sum(f.stat().st_size for f in tmp_path.glob("m.onnx*"))
    with Segmenter(path) as segmenter:
        segmenter.predict(np.zeros((50, 70, 3), np.uint8))
    monkeypatch.undo()
    export(config(files, path))  # a smaller model of the same name removes the old weights file
    assert sorted(f.name for f in tmp_path.iterdir()) == ["m.onnx"]


@pytest.mark.parametrize(
    ("mlp", "precision"),
    [("gelu", "fp32"), ("gelu", "bf16"), ("swiglu", "fp16")],
)
def test_models_larger_than_the_memory_give_the_same_file(tmp_path, monkeypatch, mlp, precision):
    files = tiny.write(tmp_path, tiny.network(replace(tiny.ARCH, mlp=mlp)))
    complete, streamed = tmp_path / "complete" / "m.onnx", tmp_path / "streamed" / "m.onnx"
    for path in (complete, streamed):
        path.parent.mkdir()
    first = export(config(files, complete, precision=precision))
    monkeypatch.setattr(run, "STREAMED_BYTES", 0)
    monkeypatch.setattr(PartwiseSession.__init__, "__kwdefaults__", {"max_loaded": 0, "part": 100})
    built = []
    monkeypatch.setattr(
        run, "build_network", lambda *a, **k: built.append(k) or build_network(*a, **k)
    )
    second = export(config(files, streamed, precision=precision))
    assert built == [{"stream": True}]
    assert streamed.read_bytes() == complete.read_bytes()
    assert second.islands == first.islands
    assert second.verification.mask_mean == pytest.approx(
        first.verification.mask_mean, rel=0.1, abs=1e-6
    )


def test_a_streamed_export_is_verified(files, tmp_path, monkeypatch):
    """The verification checks the weights in the file, not those in memory."""
    monkeypatch.setattr(run, "STREAMED_BYTES", 0)
    monkeypatch.setattr(graph.save, "__kwdefaults__", {"limit": 1000})
    real = graph.save

    def damaged(*args, **kwargs):
        files = real(*args, limit=1000)
        data = bytearray(files[0].read_bytes())
        data[: len(data) // 2] = bytes(len(data) // 2)
        files[0].write_bytes(data)
        return files

    monkeypatch.setattr(graph, "save", damaged)
    with pytest.raises(VerificationError, match="differs from the checkpoint"):
        export(config(files, tmp_path / "m.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_export_is_caught_and_nothing_is_written(files, tmp_path, monkeypatch):
    real = graph.trace

    def off_by_a_little(model, spec):
        with torch.no_grad():
            model.class_head.bias[0] += 0.5
        return real(model, spec)

    monkeypatch.setattr(graph, "trace", off_by_a_little)
    with pytest.raises(VerificationError, match="differs from the checkpoint"):
        export(config(files, tmp_path / "m.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_verification_fails_on_nan():
    good = Verification(1, 1, 0, 0, 0, 0, 0.0, 1.0, 1.0, 1.0)
    verify.check(good, "fp32")
    for change in ({"relative_max": float("nan")}, {"mask_agreement": 0.99}):
        with pytest.raises(VerificationError):
            verify.check(replace(good, **change), "fp32")


def test_an_interrupted_export_leaves_nothing(files, tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("eomt_deploy.backends.verification.compare", stop)
    with pytest.raises(KeyboardInterrupt):
        export(config(files, tmp_path / "m.onnx"))
    assert list(tmp_path.iterdir()) == []


def test_weights_that_were_not_annealed(tmp_path):
    state = tiny.official_keys(tiny.network())
    state["network.attn_mask_probs"] = torch.tensor([0.0, 0.25])
    files = tiny.write(tmp_path)
    torch.save(state, files.checkpoint)
    path = tmp_path / "m.onnx"
    with pytest.raises(CheckpointError, match=r"\[0, 0.25\](.|\n)*27.4(.|\n)*--allow-unannealed"):
        export(config(files, path))
    report = export(config(files, path, allow_unannealed=True))
    assert any("NOT annealed" in warning for warning in report.warnings)
    assert report.spec.provenance["masked_attention"] == "not annealed"


def test_classes_must_be_known_and_fit(files, tmp_path):
    path = tmp_path / "m.onnx"
    with pytest.raises(UsageError, match="names of the 5 classes are unknown"):
        export(config(files, path, classes=None))
    short = tmp_path / "short.json"
    short.write_text(json.dumps(tiny.CLASSES[:3]))
    with pytest.raises(UsageError, match="has 3 classes, but the checkpoint has 5"):
        export(config(files, path, classes=short))
    with pytest.raises(UsageError, match="133 classes, but the checkpoint has 5"):
        export(config(files, path, classes=None, name="coco-panoptic-eomt-large-640"))
    with pytest.raises(UsageError, match="task of the model is unknown"):
        export(config(files, path, task=None))


@pytest.mark.parametrize(
    ("change", "word"),
    [
        ({"precision": "int3"}, "int3"),
        ({"task": "depth"}, "depth"),
        ({"output": Path("model.engine")}, r"model\.onnx"),
        ({"output": Path("model")}, r"model\.onnx"),
        ({"batch": 0}, "--batch must be at least 1, got 0"),
    ],
)
def test_wrong_configurations(files, change, word):
    with pytest.raises(UsageError, match=word):
        config(files, **{"output": Path("m.onnx"), **change})


def test_output_is_checked_before_the_work(files, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        export(config(files, tmp_path / "file" / "m.onnx"), lambda step: pytest.fail(step))


def test_metadata_is_readable_by_plain_onnx(exported):
    model = onnx.load(exported("semantic"))
    metadata = {p.key: p.value for p in model.metadata_props}
    assert json.loads(metadata[METADATA_KEY])["task"] == "semantic"


def test_output_that_is_not_finite_fails(exported, files, image_path):
    class Broken:
        spec = read_model_file(exported("panoptic")).spec

        def run(self, images):
            with open_engine(exported("panoptic")) as engine:
                class_logits, mask_logits = engine.run(images)
            mask_logits[0, 0, 0, 0] = np.nan
            return class_logits, mask_logits

    model = build_network(read_checkpoint(files.checkpoint), (64, 64))
    result = compare(Broken(), NetworkEngine(model, Broken.spec), [image_path])
    assert result.to_dict()["relative_max"] is None
    with pytest.raises(VerificationError, match=r"the mask logits on \S+ are NaN or infinite"):
        verify.check(result, "fp32")
