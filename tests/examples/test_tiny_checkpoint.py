"""The example that made the embedded checkpoint, and the checkpoint itself."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock

from eomt_deploy import Segmenter, catalog
from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.evaluation import evaluate, open_dataset
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.exporting.network import build_network
from eomt_deploy.spec import TASKS

EXAMPLE = Path(__file__).parents[2] / "examples" / "tiny_checkpoint"
EMBEDDED = catalog.find_checkpoint("eomt-tiny-scenes")
ANOTHER_SEED = 1234  # neither the training's nor the model card's


@pytest.fixture
def example(monkeypatch):
    """Modules of the example, which is a program and not a package."""
    import importlib

    monkeypatch.syspath_prepend(str(EXAMPLE))
    return importlib.import_module


def test_scenes_are_functions_of_their_key(example):
    scenes = example("scenes")
    first = scenes.make_scene("held-out", 7, 3, (96, 128))
    again = scenes.make_scene("held-out", 7, 3, (96, 128))
    assert (first.image == again.image).all()
    assert (first.segment_ids == again.segment_ids).all()
    for other in (
        scenes.make_scene("held-out", 7, 4, (96, 128)),
        scenes.make_scene("held-out", 8, 3, (96, 128)),
        scenes.make_scene("train", 7, 3, (96, 128)),
    ):
        assert (first.image != other.image).mean() > 0.5


def test_ground_truth_is_complete(example, tmp_path):
    scenes = example("scenes")
    for index in range(20):
        scene = scenes.make_scene("held-out", 5, index, (100, 140))
        ids = {s.id for s in scene.segments}
        assert set(np.unique(scene.segment_ids)) - {0} == ids
        stuff = [s.category_id for s in scene.segments if not s.isthing]
        assert len(stuff) == len(set(stuff))
    scenes.write_coco_panoptic(tmp_path, 3, 5)
    document = json.loads((tmp_path / "panoptic.json").read_text())
    assert len(document["annotations"]) == 3
    names = [c.name for c in EMBEDDED.class_list()]
    assert [c["name"] for c in document["categories"]] == names


def test_training_network_and_ours_agree(example):
    state = torch.load(EMBEDDED.source, weights_only=True)
    trained = example("network").from_checkpoint(state)
    ours = build_network(read_checkpoint(EMBEDDED.source), EMBEDDED.size)
    images = torch.randint(0, 256, (2, *EMBEDDED.size, 3), dtype=torch.uint8)
    with torch.inference_mode():
        theirs = trained(images.permute(0, 3, 1, 2).contiguous())[trained.shape.num_blocks]
        for have, want in zip(ours(images), theirs, strict=True):
            assert (have - want).abs().max() < 1e-4 * want.abs().max()


def test_masks_are_annealed_block_after_block(example):
    plan = example("train").Plan(1000, 10, 1e-3, (200, 800), False, 0.999)
    steps = np.array([plan.mask_probabilities(step, 3) for step in range(1000)])
    assert (steps[:201] == 1).all()
    assert (steps[800:] == 0).all()
    assert (np.diff(steps, axis=0) <= 0).all()
    assert (steps[400] == [0, 1, 1]).all()


@pytest.mark.parametrize("probability", [0.0, 1.0])
def test_masked_attention_keeps_queries_in_their_masks(example, probability):
    network = example("network")
    model = network.EoMT(network.Shape(size=64, width=64, depth=2, num_blocks=1, queries=3))
    logits = torch.full((1, 3, 16, 16), -1.0)
    logits[:, 1, :, :8] = 1
    allowed = model.attention_mask(logits, probability)[0, 0]
    patches = allowed[:3, 3 + 1 + 4 :].reshape(3, 4, 4)
    assert patches[0].all()  # an empty mask would attend to nothing
    assert patches[1, :, :2].all()
    assert patches[1, :, 2:].any() == (probability == 0)
    assert allowed[3:].all()


def test_a_few_steps_of_training_make_an_exportable_checkpoint(
    example, monkeypatch, tmp_path, capsys
):
    """In this process, so that PyTorch is not imported again."""
    options = ("--steps", "4", "--batch", "1", "--threads", "1", "--anneal", "1", "3",
               "--log-every", "1")  # fmt: skip
    monkeypatch.setattr(sys, "argv", ["train.py", str(tmp_path), *options])
    threads, state = torch.get_num_threads(), np.random.get_state()
    try:
        example("train").main()
    finally:
        torch.set_num_threads(threads)
        torch.set_flush_denormal(False)
        np.random.set_state(state)
    assert "step 4/4" in capsys.readouterr().out
    checkpoint = read_checkpoint(tmp_path / "last.bin")
    assert checkpoint.attn_mask_probs == (0.0, 0.0, 0.0)
    assert read_checkpoint(tmp_path / "fork.bin").attn_mask_probs == (1.0, 1.0, 1.0)
    build_network(checkpoint, (160, 160))


def test_embedded_checkpoint_is_small_and_described():
    assert Path(EMBEDDED.source).stat().st_size <= 8_000_000
    checkpoint = read_checkpoint(EMBEDDED.source)
    assert checkpoint.parameters == EMBEDDED.parameters
    assert checkpoint.architecture.num_queries == EMBEDDED.queries
    assert checkpoint.native_grid == (EMBEDDED.size[0] // 16, EMBEDDED.size[1] // 16)


@pytest.fixture(scope="module")
def new_scenes(common: Path) -> Path:
    """Twenty scenes that all workers share."""
    folder = common / "scenes"
    program = "import pathlib, sys, scenes; "
    program += f"scenes.write_coco_panoptic(pathlib.Path(sys.argv[1]), 20, {ANOTHER_SEED})"
    with FileLock(common / "scenes.lock"):
        if not folder.exists():
            subprocess.run([sys.executable, "-c", program, folder], cwd=EXAMPLE, check=True)
    return folder


@pytest.mark.parametrize(("task", "minimum"), zip(TASKS, (65, 25, 55), strict=True))
def test_embedded_checkpoint_knows_scenes_it_never_saw(new_scenes, tmp_path, task, minimum):
    path = tmp_path / "m.onnx"
    export(ExportConfig("eomt-tiny-scenes", path, task=task, allow_stuff=task == "instance"))
    with Segmenter(path) as segmenter:
        report = evaluate(segmenter, open_dataset([new_scenes], segmenter.spec))
    assert report.scores.value >= minimum
