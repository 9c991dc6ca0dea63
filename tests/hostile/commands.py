"""Commands that write files, with small inputs, each in its own process."""

from __future__ import annotations

import os
import re
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import forked
from PIL import Image

from eomt_deploy.journal import JOURNAL_NAME

from . import seed_datasets, seeds

TESTS = Path(__file__).parents[1]
ROOT = TESTS.parent
LEFTOVERS = ".eomt-deploy-"
"""Prefix of our temporary files and folders."""


@dataclass(frozen=True)
class Inputs:
    """Files that commands read and must not change."""

    folder: Path

    @property
    def model(self) -> Path:
        return self.folder / "model.onnx"

    @property
    def images(self) -> Path:
        return self.folder / "images"

    @property
    def data(self) -> Path:
        return self.folder / "data"

    @property
    def checkpoint(self) -> Path:
        return self.folder / "weights" / "tiny.bin"

    @property
    def classes(self) -> Path:
        return self.folder / "weights" / "classes.json"

    def content(self) -> dict[str, bytes]:
        """The content of every input file, to check that none was changed."""
        files = (p for p in self.folder.rglob("*") if p.is_file())
        return {str(p.relative_to(self.folder)): p.read_bytes() for p in sorted(files)}


def make_inputs(folder: Path, *, images: int = 12, side: int = 600) -> Inputs:
    """A model of a few operators, images, labelled data and a checkpoint."""
    import tiny

    inputs = Inputs(folder)
    inputs.images.mkdir(parents=True)
    inputs.model.write_bytes(seeds.onnx_model("panoptic"))
    for index in range(images):
        seeds.picture(side, side * 2 // 3, index).save(inputs.images / f"{index:02d}.png")
    (folder / "semantic.onnx").write_bytes(seeds.onnx_model("semantic"))
    for name in ("images", "labels"):
        (inputs.data / name).mkdir(parents=True)
    for index in range(images * 2):
        seeds.picture(300, 200, index).save(inputs.data / "images" / f"{index:02d}.jpg")
        labels = Image.fromarray(seed_datasets.segment_ids(index, (200, 300), 3))
        labels.save(inputs.data / "labels" / f"{index:02d}.png")
    inputs.checkpoint.parent.mkdir()
    tiny.write(inputs.checkpoint.parent)
    return inputs


def predict(inputs: Inputs, out: Path) -> list[object]:
    return ["predict", inputs.model, inputs.images, "-o", out / "results"]


def resume(inputs: Inputs, out: Path) -> list[object]:
    return [*predict(inputs, out), "--resume"]


def predict_file(inputs: Inputs, out: Path) -> list[object]:
    return ["predict", inputs.model, inputs.images / "00.png", "-o", out / "one.png"]


def export(inputs: Inputs, out: Path) -> list[object]:
    return ["export", inputs.checkpoint, "-o", out / "m.onnx", "--task", "panoptic",
            "--classes", inputs.classes]  # fmt: skip


def evaluate(inputs: Inputs, out: Path) -> list[object]:
    return ["eval", inputs.folder / "semantic.onnx", "--data", inputs.data, "--json",
            out / "scores.json", "--resume", out / "log.jsonl"]  # fmt: skip


def bench(inputs: Inputs, out: Path) -> list[object]:
    return ["bench", "--engine", inputs.model, "--iterations", 5, "--warmup", 1, "--json",
            out / "bench.json"]  # fmt: skip


def compare(inputs: Inputs, out: Path) -> list[object]:
    return ["compare", inputs.model, inputs.model, inputs.images / "00.png", "--json",
            out / "compare.json"]  # fmt: skip


Command = Callable[[Inputs, Path], list[object]]


def start(arguments: list[object], printed: int = subprocess.DEVNULL) -> forked.Started:
    """The command line in a process of its own."""
    code, imports = forked.COMMAND, (*forked.IMAGES, "eomt_deploy.evaluation")
    if arguments[0] == "export":
        code, imports = forked.EXPORT, forked.EXPORTS
    return forked.start(
        arguments, code=code, imports=imports, stdout=printed, stderr=printed,
        env=os.environ | {"TERM": "dumb"},
    )  # fmt: skip


def run(arguments: list[object]) -> tuple[int, str]:
    """Exit code, and all that was printed."""
    with tempfile.TemporaryFile() as file:
        code = start(arguments, file.fileno()).wait(300)
        file.seek(0)
        return code, file.read().decode(errors="replace")


def unfinished(folder: Path) -> list[str]:
    """Files of ours that are not whole, by their kind; temporary ones are not looked into."""
    found = []
    for path in sorted(folder.rglob("*")):
        if not path.is_file() or any(part.startswith(LEFTOVERS) for part in path.parts):
            continue
        try:
            check_complete(path)
        except Exception as error:
            found.append(f"{path.relative_to(folder)}: {error!r}"[:200])
    return found


def check_complete(path: Path) -> None:
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as image:
            image.load()
    elif path.suffix == ".json":
        import json

        json.loads(path.read_text("utf-8"))
    elif path.suffix == ".onnx":
        from eomt_deploy.model_file import read_model_file

        read_model_file(path)


def leftovers(*folders: Path) -> list[Path]:
    """Temporary files and folders; a command may be running, so that a folder may be gone again."""
    return [
        Path(parent, name)
        for folder in folders
        for parent, folders_in_it, files in os.walk(folder)  # unlike rglob, it skips such a folder
        for name in (*folders_in_it, *files)
        if name.startswith(LEFTOVERS)
    ]


def results(folder: Path) -> dict[str, bytes]:
    """What a command wrote; times and dates in it do not count, nor does the journal of them."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file()]
    return {
        str(p.relative_to(folder)): re.sub(rb'"(date|seconds)": [^,}]+', b"", p.read_bytes())
        for p in files
        if not any(part.startswith(LEFTOVERS) for part in p.parts) and p.name != JOURNAL_NAME
    }
