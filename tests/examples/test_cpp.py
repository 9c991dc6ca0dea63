"""The C++ example runs a model file in ONNX Runtime's C++ API, and gives what Python gives."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from filelock import FileLock
from onnxruntime_headers import headers
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.processing import compiled

ROOT = Path(__file__).parents[2]
NATIVE = compiled.FOLDER
sys.path.insert(0, str(ROOT))
import hatch_build  # noqa: E402

SCENES = sorted((ROOT / "examples" / "scenes").glob("*.png"))
pytestmark = [
    pytest.mark.external,
    pytest.mark.skipif(sys.platform != "linux", reason="links a Linux library"),
]


@pytest.fixture(scope="session")
def program(common, pytestconfig) -> Path:
    """The example, compiled as docs/cpp.md describes it."""
    path = common / "segment"
    with FileLock(common / "program.lock"):
        if path.exists():
            return path
        include = headers(pytestconfig.cache.mkdir("onnxruntime_headers"))
        triple, _, _, variants = hatch_build.TARGETS[hatch_build.this_machine()]
        variant = Path(compiled.library()._name).stem.removeprefix("pixels-")
        archive = common / "libeomt.a"
        hatch_build.compile_archive(ROOT, archive, triple, variants[variant])
        (runtime,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*")
        (common / "libonnxruntime.so.1").symlink_to(runtime)  # the name that programs look for
        # Zig would compile its C++ library first, which takes a minute and a half.
        compiler = ["c++"] if shutil.which("c++") else [sys.executable, "-m", "ziglang", "c++"]
        subprocess.run(
            [*compiler, "-std=c++17", "-O2", "-Wall", "-Wextra",
             "-Werror", "-I", NATIVE, "-isystem", include, ROOT / "examples/cpp/segment.cpp",
             archive, runtime, f"-Wl,-rpath,{common}", "-Wl,--allow-shlib-undefined", "-o", path],
            check=True,
        )  # fmt: skip
    return path


@pytest.fixture(scope="session")
def scenes_model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("embedded") / "tiny.onnx"
    export(ExportConfig("eomt-tiny-scenes", path))
    return path


def run(program, *arguments, code: int = 0) -> str:
    done = subprocess.run([program, *arguments], capture_output=True, text=True)
    assert done.returncode == code, done.stderr
    return done.stdout + done.stderr


def assert_same(program, model: Path, image: Path, folder: Path) -> int:
    """Compare the example with Python, byte by byte. Returns the number of segments."""
    with Image.open(image) as opened:
        opened.convert("RGB").save(folder / "image.ppm")
    printed = run(program, model, folder / "image.ppm", folder / "labels.pgm")
    with Segmenter(model, backend="onnxruntime") as segmenter:
        wanted = segmenter.predict(image)
    labels = np.zeros(wanted.size, np.uint16)
    if wanted.labels is None:
        for segment in reversed(wanted.segments):
            labels[segment.mask] = segment.id + 1
    else:
        labels[:] = wanted.labels
    height, width = wanted.size
    content = b"P5\n%d %d\n65535\n" % (width, height) + labels.astype(">u2").tobytes()
    assert (folder / "labels.pgm").read_bytes() == content
    lines = [line.rsplit(" ", 6) for line in printed.splitlines()]
    assert len(lines) == len(wanted.segments)
    for (first, score, *numbers), segment in zip(lines, wanted.segments, strict=True):
        assert first == f"{segment.id} {segment.class_name}"
        assert float(score) == segment.score
        assert [int(n) for n in numbers] == [segment.area, *segment.box]
    return len(lines)


@pytest.mark.parametrize("scene", SCENES, ids=lambda path: path.stem)
def test_panoptic_scenes(program, scenes_model, scene, tmp_path):
    assert assert_same(program, scenes_model, scene, tmp_path) >= 3


@pytest.mark.parametrize("task", ["semantic", "instance", "panoptic"])
def test_every_task(program, exported, task, tmp_path):
    count = assert_same(program, exported(task), SCENES[0], tmp_path)
    assert count >= {"semantic": 0, "instance": 50, "panoptic": 0}[task]


def test_errors_are_sentences(program, scenes_model, tmp_path):
    assert run(program, code=2).startswith("Usage: segment")
    bad = tmp_path / "image.ppm"
    bad.write_bytes(b"P6\n2 2\n255\n\0\0")
    out = tmp_path / "labels.pgm"
    assert "is cut off" in run(program, scenes_model, bad, out, code=1)
    Image.new("RGB", (2000, 1)).save(bad)
    assert "aspect ratio" in run(program, scenes_model, bad, out, code=1)
    assert not out.exists()


@pytest.mark.skipif(shutil.which("nm") is None, reason="binutils is not installed")
def test_the_static_library_occupies_no_other_names(program, common):
    listed = run("nm", "--defined-only", "--extern-only", common / "libeomt.a")
    names = {line.split()[-1] for line in listed.splitlines() if len(line.split()) == 3}
    assert "eomt_postprocess" in names
    assert all(name.startswith("eomt_") for name in names)
