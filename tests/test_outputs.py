from __future__ import annotations

import json
import os

import numpy as np
import pytest
from PIL import Image

from eomt_deploy.cli.console import write_json
from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.files import save_picture, write_atomically
from eomt_deploy.outputs import check_outputs, is_ours


def check(path, *inputs, overwrite=False):
    check_outputs({"-o": path}, inputs=inputs, overwrite=overwrite)


def users_files(folder):
    """A foreign file for every suffix that we write."""
    Image.new("RGB", (4, 4)).save(folder / "x.png")
    Image.new("RGB", (4, 4)).save(folder / "x.jpg")
    np.savez(folder / "x.npz", a=np.zeros(2))
    (folder / "x.json").write_text('{"text": "made for eomt-deploy 0.1"}')
    (folder / "classes.json").write_text("[]")
    (folder / "x.md").write_text("# eomt-deploy 0.1\n")
    (folder / "x.onnx").write_bytes(b"\x08\x07")
    (folder / "x.onnx.data").write_bytes(b"weights")
    (folder / "x.xml").write_text("<net></net>")
    (folder / "pytorch_model.bin").write_bytes(b"weights")
    (folder / "x.pt2").write_bytes(b"PK\x05\x06" + bytes(18))
    (folder / "x.engine").write_bytes(b"plan")
    (folder / "x.engine.json").write_text("{}")
    (folder / "x.jsonl").write_text("{}\n")
    (folder / "no suffix").write_text("")
    return sorted(folder.iterdir())


def test_files_of_somebody_else_are_refused_unless_the_user_says_so(tmp_path):
    for path in users_files(tmp_path):
        assert not is_ours(path), path
        with pytest.raises(OutputError, match="did not write"):
            check(path)
        check(path, overwrite=True)


def test_our_results_are_recognised(tmp_path, exported):
    from eomt_deploy import Segmenter

    assert is_ours(exported("semantic"))
    write_json(tmp_path / "report.json", {"schema": 1})
    save_picture(Image.new("RGB", (4, 4)), tmp_path / "a.png")
    save_picture(Image.new("RGB", (4, 4)), tmp_path / "a.JPG")
    with Segmenter(exported("panoptic")) as segmenter:
        result = segmenter.predict(np.zeros((20, 30, 3), np.uint8))
        for name in ("seen.png", "seen.jpg", "seen.json", "seen.npz"):
            result.save(tmp_path / name)
    for path in tmp_path.iterdir():
        assert is_ours(path), path
        check(path)


@pytest.mark.parametrize("overwrite", [False, True])
def test_an_input_is_never_replaced(tmp_path, overwrite):
    image, link, twin = tmp_path / "a.jpg", tmp_path / "link.jpg", tmp_path / "twin.jpg"
    save_picture(Image.new("RGB", (4, 4)), image)  # not even if we wrote it
    link.symlink_to(image)
    os.link(image, twin)
    for target in (image, link, twin, tmp_path / "." / "a.jpg"):
        with pytest.raises(UsageError, match="an input of this command"):
            check(target, image, overwrite=overwrite)


def test_files_inside_an_input_folder(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "labels.json").write_text("{}")
    write_json(data / "scores.json", {})
    check(data / "new.json", data)
    check(data / "scores.json", data)
    with pytest.raises(UsageError, match="never replaced"):
        check(data / "labels.json", data, overwrite=True)


def test_two_outputs_of_one_name(tmp_path):
    with pytest.raises(UsageError, match="--json and -o name the same file"):
        check_outputs(
            {"--json": tmp_path / "x.json", "-o": tmp_path / "a" / ".." / "x.json"},
            inputs=[],
            overwrite=True,
        )


def test_new_files_stdout_and_devices_are_fine(tmp_path):
    check_outputs({"-o": tmp_path / "new.json", "--json": "-", "--plot": None}, inputs=[None], overwrite=False)  # noqa: E501  # fmt: skip
    check(tmp_path / ".." / os.devnull)


@pytest.mark.parametrize("content", [b"", b"{", b"\xff" * 300, b"[" * 100_000, b"\x89PNG\r\n"])
@pytest.mark.parametrize("suffix", ["json", "png", "npz", "onnx", "pt2", "xml", "engine"])
def test_damaged_files_are_not_ours(tmp_path, suffix, content):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    (tmp_path / "x.engine.json").write_bytes(content)
    assert not is_ours(path)


def test_report_keeps_its_numbers(tmp_path):
    write_json(tmp_path / "r.json", {"a": 1})
    assert json.loads((tmp_path / "r.json").read_text())["a"] == 1


def test_marker_of_an_earlier_version_counts(tmp_path):
    write_atomically(tmp_path / "r.json", b'{"generator": "eomt-deploy 0.0.9"}')
    assert is_ours(tmp_path / "r.json")
