"""Unreadable images among those that an export is calibrated or verified on."""

from __future__ import annotations

import made_up
import pytest

from eomt_deploy.errors import ImageError
from eomt_deploy.exporting import ExportConfig, export
from eomt_deploy.sources import MIN_READABLE


@pytest.fixture
def folder(tmp_path):
    """A folder with nine images and other files."""
    root = tmp_path / "images"
    root.mkdir()
    for index in range(9):
        made_up.random_image(index, (50, 70)).save(root / f"{index}.jpg")
    (root / "notes.txt").write_text("x")
    return root


def config(files, tmp_path, **options):
    return ExportConfig(
        str(files.checkpoint),
        tmp_path / "m.onnx",
        task="semantic",
        classes=files.classes,
        **options,
    )


def test_calibration_leaves_it_out_and_names_it(files, tmp_path, folder):
    (folder / "3.jpg").write_bytes(b"broken")
    made_up.random_image(0, (1, 5000)).save(folder / "8.png")  # can be read, but not resized
    report = export(config(files, tmp_path, precision="int8", calibrate=folder))
    warnings = "\n".join(report.warnings)
    assert "2 of 10 images for calibration cannot be read and are left out" in warnings
    assert f"{folder / '3.jpg'} is not an image" in warnings
    assert f"{folder / '8.png'}: The image of 1x5000" in warnings
    assert "Images for calibration: left out 1 file: 1 .txt." in warnings
    assert report.verdict.chosen.judgement.images == 2  # every fourth of eight


def test_too_few_are_an_error(files, tmp_path, folder, cli):
    for index in range(10 - MIN_READABLE):
        (folder / f"{index}.jpg").write_bytes(b"broken")
    for options in ({"precision": "int8", "calibrate": folder}, {"verify_images": folder}):
        with pytest.raises(ImageError, match=f"3 of 9 images .* at least {MIN_READABLE} are"):
            export(config(files, tmp_path, **options))
    code, _, err = cli("export", files.checkpoint, "-o", tmp_path / "m.onnx", "--task", "semantic",
                       "--classes", files.classes, "--verify-images", folder)  # fmt: skip
    assert code == 2
    assert "3 of 9 images for verification can be read" in err
    assert not (tmp_path / "m.onnx").exists()


def test_verification_leaves_it_out_and_names_it(files, tmp_path, folder):
    (folder / "3.jpg").write_bytes(b"broken")
    report = export(config(files, tmp_path, verify_images=folder))
    assert report.verification.images == 8
    assert "3.jpg is not an image" in "\n".join(report.warnings)
    one = export(config(files, tmp_path, verify_images=folder / "1.jpg"))
    assert one.verification.images == 1
    assert not one.warnings
