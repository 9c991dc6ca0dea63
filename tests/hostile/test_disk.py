"""Full disk: one error, exit code 2, and no incomplete or lost file."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from hostile.commands import (
    Command,
    Inputs,
    bench,
    compare,
    evaluate,
    export,
    leftovers,
    make_inputs,
    predict,
    predict_file,
    unfinished,
)

resource = pytest.importorskip("resource")
pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="limits and mounts are Linux's")
COMMANDS = {
    "predict": (predict, 4000),
    "predict to a file": (predict_file, 4000),
    "eval": (evaluate, 300),
    "export": (export, 50_000),
    "bench": (bench, 200),
    "compare": (compare, 100),
}
"""The output of each command, and the maximum file size in bytes."""


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory, exported: Callable[..., Path]) -> Inputs:
    exported("panoptic")  # otherwise its graph would be traced and stored on the full disk
    return make_inputs(tmp_path_factory.mktemp("inputs") / "in", images=4)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 64 KiB without a free byte."""
    place = tmp_path / "disk"
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(place)]
    try:
        mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here; this needs root")
    try:
        with suppress(OSError), (place / "filler").open("wb", buffering=0) as filler:
            while True:
                filler.write(bytes(1024))
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    """A limit of the size of files, as quotas set it."""
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "dont_write_bytecode", True)  # or Python would keep truncated .pyc files
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)


def check(cli, inputs: Inputs, command: Command, out: Path, size: int | None = None) -> None:
    before, there = inputs.content(), {p: p.read_bytes() for p in out.rglob("*") if p.is_file()}
    with largest_file(size or resource.RLIM_INFINITY):
        code, *texts = cli(*command(inputs, out))
    text = "".join(texts)
    assert code == 2, f"exit code {code}\n{text}"
    assert "Traceback" not in text, text
    assert text.count("error E") == 1, text
    assert "No space left" in text or "File too large" in text, text
    assert not unfinished(out)
    assert not leftovers(out)
    assert inputs.content() == before
    assert {p: p.read_bytes() for p in there} == there


@pytest.mark.parametrize("name", COMMANDS)
def test_a_file_that_may_not_grow(cli, inputs, tmp_path, name):
    """A limit of the size of files, as quotas set it."""
    command, size = COMMANDS[name]
    check(cli, inputs, command, tmp_path, size)


@pytest.mark.parametrize("name", COMMANDS)
def test_a_disk_that_is_full(cli, inputs, small_disk, name):
    """Existing files are kept."""
    command, _ = COMMANDS[name]
    check(cli, inputs, command, small_disk)
