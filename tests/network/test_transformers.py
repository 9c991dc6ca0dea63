"""Comparison with the class and image processor of transformers, with random weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
from safetensors.torch import load_file, save_file

from eomt_deploy import Segmenter
from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.exporting.network import build_network
from eomt_deploy.network.folds import fold
from eomt_deploy.processing import Processor
from eomt_deploy.sources import load_image

transformers = pytest.importorskip("transformers")

SIZE = 64
OURS = {
    "num_attention_heads": 1, "num_queries": tiny.ARCH.num_queries,
    "num_register_tokens": tiny.ARCH.registers,
}  # fmt: skip
"""Settings of the tiny network, whose graph other tests have traced already."""
RATIOS = {"gelu": 1.5, "swiglu": 2.25}
"""The ratios with which an MLP has the hidden size of the tiny network."""


def make_folder(folder: Path, *, swiglu: bool, annealed: bool = True, ratio: float = 4, **settings):
    """Write a Hugging Face model folder with random, confident weights; return the model."""
    torch.manual_seed(3)
    known = {"num_attention_heads": 2, "num_queries": 20, "num_register_tokens": 3}
    config = transformers.EomtConfig(
        hidden_size=64,
        num_hidden_layers=3,
        num_blocks=2,
        image_size=SIZE,
        use_swiglu_ffn=swiglu,
        id2label={i: c["name"] for i, c in enumerate(tiny.CLASSES)},
        **(known | settings),
    )
    vars(config)["mlp_ratio"] = ratio  # the network takes fractions too, but the check does not
    model = transformers.EomtForUniversalSegmentation(config).eval()
    with torch.no_grad():
        for name, value in model.named_parameters():
            if value.ndim > 1:
                value.normal_(std=1.5 * value[0].numel() ** -0.5)
            elif "lambda" in name:
                value.uniform_(0.1, 1)
        model.class_predictor.weight.mul_(10)
        if annealed:
            model.attn_mask_probs.zero_()
    model.save_pretrained(folder)
    return model


def processor_for(task: str) -> transformers.EomtImageProcessorPil:
    if task == "semantic":
        size = {"shortest_edge": SIZE, "longest_edge": None}
        return transformers.EomtImageProcessorPil(do_split_image=True, do_pad=False, size=size)
    size = {"shortest_edge": SIZE, "longest_edge": SIZE}
    return transformers.EomtImageProcessorPil(do_split_image=False, do_pad=True, size=size)


@pytest.mark.parametrize("swiglu", [False, True], ids=["gelu", "swiglu"])
def test_same_network(tmp_path, swiglu):
    model = make_folder(tmp_path, swiglu=swiglu)
    checkpoint = read_checkpoint(tmp_path)
    arch = checkpoint.architecture
    assert (arch.heads, arch.registers, arch.num_queries) == (2, 3, 20)
    images = torch.from_numpy(tiny.images(2))
    network = build_network(checkpoint, (SIZE, SIZE))
    pixels = images.permute(0, 3, 1, 2) / 255
    pixels = (pixels - network.pixel_mean) / network.pixel_std
    with torch.inference_mode():
        outputs = model(pixels, patch_offsets=None)
        for found in (network(images), fold(network)(images)):
            for have, want in (
                (found[0], outputs.class_queries_logits),
                (found[1], outputs.masks_queries_logits),
            ):
                assert (have - want).abs().max() < 1e-4 * want.abs().max()


@pytest.mark.parametrize(
    ("mlp", "task"),
    [("gelu", "semantic"), ("gelu", "instance"), ("gelu", "panoptic"), ("swiglu", "panoptic")],
)
def test_same_logits_and_results(mlp, task, tmp_path, files, image_path):
    folder = tmp_path / "hf"
    model = make_folder(folder, swiglu=mlp == "swiglu", ratio=RATIOS[mlp], **OURS)
    assert read_checkpoint(folder).architecture == replace(tiny.ARCH, mlp=mlp)
    path = tmp_path / "m.onnx"
    allow = task == "instance"
    export(ExportConfig(str(folder), path, task=task, classes=files.classes, allow_stuff=allow))
    theirs = processor_for(task)
    # A size at which truncation (transformers) and rounding (official code) agree.
    pixels = np.ascontiguousarray(load_image(image_path)[:384, :576])
    inputs = theirs(images=pixels, return_tensors="pt")
    offsets = inputs.pop("patch_offsets", None)
    with torch.inference_mode():
        outputs = model(**inputs, patch_offsets=offsets)

    with Segmenter(path) as segmenter:
        images, geometry = segmenter.processor.preprocess(pixels)
        class_logits, mask_logits = segmenter.engine.run(images)
        for have, want in (
            (class_logits, outputs.class_queries_logits.numpy()),
            (mask_logits, outputs.masks_queries_logits.numpy()),
        ):
            assert np.abs(have - want).max() < 1e-4 * np.abs(want).max()
        # Random masks overlap much more than trained ones: keep segments that win few pixels.
        processor = segmenter.processor
        if task == "instance":  # twice the queries: more candidates than the official maximum
            processor = Processor(replace(processor.spec, num_queries=2 * tiny.ARCH.num_queries))
            class_logits, mask_logits = (
                np.concatenate([x, x], axis=1) for x in (class_logits, mask_logits)
            )
        lenient = {"score_threshold": 0.5, "overlap_threshold": 0.05}
        thresholds = lenient if task == "panoptic" else {}
        result = processor.postprocess(class_logits, mask_logits, geometry, **thresholds)

    if task == "semantic":
        wanted = theirs.post_process_semantic_segmentation(outputs, [pixels.shape[:2]])[0]
        assert (result.class_map == wanted.numpy()).mean() >= 0.999
    elif task == "panoptic":
        stuff = [i for i, c in enumerate(tiny.CLASSES) if not c["thing"]]
        wanted = theirs.post_process_panoptic_segmentation(
            outputs,
            [pixels.shape[:2]],
            stuff_classes=stuff,
            threshold=lenient["score_threshold"],
            overlap_mask_area_threshold=lenient["overlap_threshold"],
        )[0]
        assert len(result.segments) >= 2
        assert [(s.id, s.class_id) for s in result.segments] == [
            (s["id"], s["label_id"]) for s in wanted["segments_info"]
        ]
        assert (result.segment_map == wanted["segmentation"].numpy()).mean() >= 0.999
    else:
        assert len(result.segments) == 100  # the official rule, which transformers does not follow


def test_swiglu_folder_of_transformers_4(tmp_path, files):
    """4.x packs gate and value; 5.x loads such folders, but with random weights."""
    new, old = tmp_path / "new", tmp_path / "old"
    make_folder(new, swiglu=True)
    old.mkdir()
    tensors = load_file(new / "model.safetensors")
    for key in [k for k in tensors if ".gate_proj." in k]:
        gate, value = tensors.pop(key), tensors.pop(key.replace("gate_proj", "up_proj"))
        tensors[key.replace("gate_proj", "weights_in")] = torch.cat([gate, value])
    for key in [k for k in tensors if ".down_proj." in k]:
        tensors[key.replace("down_proj", "weights_out")] = tensors.pop(key)
    save_file(tensors, old / "model.safetensors", metadata={"format": "pt"})
    (old / "config.json").write_text((new / "config.json").read_text())

    first, second = read_checkpoint(new), read_checkpoint(old)
    assert first.architecture == second.architecture
    assert first.architecture.mlp == "swiglu"
    assert first.tensors.keys() == second.tensors.keys()
    assert all(torch.equal(first.tensors[k], second.tensors[k]) for k in first.tensors)
