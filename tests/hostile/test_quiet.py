"""The command line prints only its own messages about damaged images."""

from __future__ import annotations

import subprocess
import sys

from hostile import seeds


def test_no_warning_of_a_library_reaches_the_terminal(tmp_path):
    """A valid JPEG with damaged EXIF tags, a truncated TIFF, and a valid TIFF."""
    images = tmp_path / "images"
    images.mkdir()
    (tmp_path / "m.onnx").write_bytes(seeds.onnx_model("panoptic"))
    entry = b"\x0e\x01\x02\0\xe8\x03\0\0\xff\xff\0\0"  # tag 270: 1000 bytes at 65535
    exif = b"Exif\0\0II*\0\x08\0\0\0\x01\0" + entry + bytes(4)
    jpeg = seeds.encoded(seeds.picture(), "JPEG")
    length = (len(exif) + 2).to_bytes(2, "big")
    (images / "exif.jpg").write_bytes(jpeg[:2] + b"\xff\xe1" + length + exif + jpeg[2:])
    (images / "cut.tif").write_bytes(seeds.encoded(seeds.picture(), "TIFF")[:-20])
    seeds.picture().save(images / "good.png")
    command = ["predict", tmp_path / "m.onnx", images, "-o", tmp_path / "out"]
    ran = subprocess.run(
        [sys.executable, "-m", "eomt_deploy", *command],
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace",
    )  # fmt: skip
    text = ran.stdout
    done = {path.stem for path in (tmp_path / "out" / "overlay").iterdir()}
    assert (ran.returncode, done) == (2, {"exif", "good"}), text
    assert "cut.tif" in text
    assert "Warning" not in text
    assert "Traceback" not in text
