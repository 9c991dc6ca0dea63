"""A step of the tour, and checks of its result: the files it wrote, the lines it printed."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal
from xml.etree import ElementTree

import av
import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask


@dataclass(frozen=True)
class Outcome:
    """What a step left.

    Attributes:
        folder: the folder in which it ran.
        output: everything that it printed, after each command.
        codes: exit code of each command, or of the Python program.
    """

    folder: Path
    output: str
    codes: tuple[int, ...]

    @property
    def printed(self) -> str:
        """The output without the commands."""
        lines = self.output.splitlines(keepends=True)
        return "".join(line for line in lines if not line.startswith("$ "))


Check = Callable[[Outcome], None]
"""Raises an exception if something is wrong."""


@dataclass(frozen=True)
class Row:
    """One step.

    Attributes:
        title: what a user wants.
        code: commands, one per line, or lines of Python that follow `OPENING`.
        checks: all must pass.
        language: of ``code``.
        codes: exit code of each command; empty if all are 0.
        only: regular expression of the lines of the output that the page shows; empty for all.
        masked: regular expression of text that differs in each run; the page shows … instead.
        absent: text of the error on a machine that lacks what the step needs, e.g. a camera.
    """

    title: str
    code: str
    checks: tuple[Check, ...]
    language: Literal["console", "python"] = "console"
    codes: tuple[int, ...] = ()
    only: str = ""
    masked: str = ""
    absent: str = ""


def python(title: str, code: str, *checks: Check) -> Row:
    return Row(title, code, checks, "python")


class WrongError(Exception):
    """A result is not what it has to be."""


def require(condition: object, text: str) -> None:
    if not condition:
        raise WrongError(text)


def prints(*texts: str) -> Check:
    """Each of the texts is printed."""

    def check(outcome: Outcome) -> None:
        for text in texts:
            require(text in outcome.printed, f"{text!r} is not printed")

    return check


def has_fixes(number: int) -> Check:
    """That many errors are printed, each with its fix."""

    def check(outcome: Outcome) -> None:
        for word in ("error E", "  fix: "):
            found = outcome.printed.count(word)
            require(found == number, f"{word.strip()!r} is printed {found} times, not {number}")

    return check


def pixels(path: Path) -> npt.NDArray[np.uint8]:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB"))


def overlay(name: str, source: str, *, legend: bool = False) -> Check:
    """An overlay of an image: it has its size, or is wider with a legend, and is coloured."""

    def check(outcome: Outcome) -> None:
        drawn, image = pixels(outcome.folder / name), pixels(outcome.folder / source)
        height, width = image.shape[:2]
        require(drawn.shape[0] == height, f"{name} is {drawn.shape[0]} pixels high, not {height}")
        require(
            drawn.shape[1] > width if legend else drawn.shape[1] == width,
            f"{name} is {drawn.shape[1]} pixels wide, the image {width}",
        )
        difference = np.abs(drawn[:, :width].astype(int) - image).mean()
        require(difference > 3, f"{name} shows the image without colours")

    return check


def result_folder(name: str, images: int) -> Check:
    """A folder that `predict` wrote: overlays, and COCO's panoptic JSON with its label images."""

    def check(outcome: Outcome) -> None:
        folder = outcome.folder / name
        overlays = list((folder / "overlay").glob("*.jpg"))
        require(len(overlays) == images, f"{name} has {len(overlays)} overlays, not {images}")
        for path in overlays:
            pixels(path)
        found = json.loads((folder / "predictions.json").read_text())["annotations"]
        require(len(found) == images, f"{len(found)} images in predictions.json, not {images}")
        for annotation in found:
            channels = pixels(folder / "labels" / annotation["file_name"]).astype(int)
            ids = channels @ [1, 256, 65536]
            for segment in annotation["segments_info"]:
                area = int((ids == segment["id"]).sum())
                require(area == segment["area"], f"{segment} has {area} pixels in its image")

    return check


def frames(path: Path) -> tuple[list[float], tuple[int, int], float]:
    """The times of the frames, their width and height as players show them, and the duration of
    the sound in seconds, 0 without sound."""
    with av.open(str(path)) as container:
        found = list(container.decode(video=0))
        turned = found[0].rotation % 180 != 0
        size = (found[0].width, found[0].height)
        times = [float(frame.time or 0) for frame in found]
    with av.open(str(path)) as container:
        samples = [f.samples / f.sample_rate for f in container.decode(audio=0)] if (
            container.streams.audio
        ) else []  # fmt: skip
    return times, size[::-1] if turned else size, sum(samples)


def same_video(name: str, source: str) -> Check:
    """A video with the size, the times of the frames, and the sound of another one."""

    def check(outcome: Outcome) -> None:
        times, size, sound = frames(outcome.folder / name)
        wanted_times, wanted_size, wanted_sound = frames(outcome.folder / source)
        require(size == wanted_size, f"{name} has {size} pixels, not {wanted_size}")
        require(len(times) == len(wanted_times), f"{name} has {len(times)} frames")
        require(np.allclose(times, wanted_times, atol=2e-3), f"{name} has other times")
        require(wanted_sound and abs(sound - wanted_sound) < 0.1, f"{name}: {sound} s of sound")

    return check


def video_times(name: str, wanted: Sequence[float]) -> Check:
    """A video whose frames have these times, in seconds."""

    def check(outcome: Outcome) -> None:
        times = frames(outcome.folder / name)[0]
        require(
            len(times) == len(wanted) and np.allclose(times, wanted, atol=2e-3),
            f"{name} has the times {times}",
        )

    return check


def live_video(name: str, seconds: float) -> Check:
    """A recording of a stream with several frames that ends after this time."""

    def check(outcome: Outcome) -> None:
        times = frames(outcome.folder / name)[0]
        require(len(times) >= 3, f"{name} has {len(times)} frames")
        require(times == sorted(times), f"the times of {name} are not sorted")
        require(times[-1] <= seconds + 0.1, f"{name} ends at {times[-1]} s, not at {seconds} s")

    return check


def lines_and_labels(lines: str, labels: str) -> Check:
    """Masks in JSON lines that are equal to those in a label video."""

    def check(outcome: Outcome) -> None:
        rows = [json.loads(line) for line in (outcome.folder / lines).read_text().splitlines()]
        with av.open(str(outcome.folder / labels)) as container:
            images = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
        require(len(rows) == len(images) > 0, f"{len(rows)} lines, {len(images)} label images")
        for row, image in zip(rows, images, strict=True):
            ids = image.astype(int) @ [1, 256, 65536]
            areas = sorted(np.unique(ids[ids > 0], return_counts=True)[1].tolist())
            decoded = [coco_mask.decode(a["segmentation"]).sum() for a in row["annotations"]]
            require(sorted(map(int, decoded)) == areas, f"frame {row['frame']} has other masks")

    return check


def transparent(name: str, width: int, height: int) -> Check:
    """A picture of this size with transparent and opaque pixels."""

    def check(outcome: Outcome) -> None:
        with Image.open(outcome.folder / name) as image:
            require(image.mode == "RGBA", f"{name} has the mode {image.mode}")
            require(
                abs(image.width - width) <= 2 and abs(image.height - height) <= 2,
                f"{name} has {image.size} pixels",
            )
            require(image.getchannel("A").getextrema() == (0, 255), f"{name} is not cut out")

    return check


def coco_annotations(name: str) -> Check:
    """COCO annotations whose masks have the area and the box of each segment."""

    def check(outcome: Outcome) -> None:
        annotations = json.loads((outcome.folder / name).read_text())
        require(annotations, f"{name} is empty")
        for annotation in annotations:
            rle = annotation["segmentation"]
            require(coco_mask.area(rle) == annotation["area"], f"{name}: another area")
            require(coco_mask.toBbox(rle).tolist() == annotation["bbox"], f"{name}: another box")

    return check


def closed_rings(name: str) -> Check:
    """GeoJSON with closed rings, as RFC 7946 requires."""

    def check(outcome: Outcome) -> None:
        features = json.loads((outcome.folder / name).read_text())["features"]
        rings = [
            ring for f in features for part in f["geometry"]["coordinates"] for ring in part
        ]  # fmt: skip
        require(rings, f"{name} has no polygon")
        require(all(ring[0] == ring[-1] and len(ring) >= 4 for ring in rings), f"{name}: open ring")

    return check


def labelling_files(labelme: str, cvat: str, width: int, height: int) -> Check:
    """Files for LabelMe and CVAT that contain the size of the image and all labels."""

    def check(outcome: Outcome) -> None:
        content = json.loads((outcome.folder / labelme).read_text())
        size = (content["imageWidth"], content["imageHeight"])
        require(size == (width, height), f"{labelme} has the size {size}")
        image = ElementTree.parse(outcome.folder / cvat).getroot().find("image")
        assert image is not None
        require(image.get("width") == str(width), f"{cvat} has the width {image.get('width')}")
        names = {mask.get("label") for mask in image.findall("mask")}
        require(names == {s["label"] for s in content["shapes"]} != set(), "labels are missing")

    return check


def classes_in(name: str, *classes: str) -> Check:
    """A COCO file with annotations of exactly these classes."""

    def check(outcome: Outcome) -> None:
        content = json.loads((outcome.folder / name).read_text())
        found = {annotation["category_name"] for annotation in content["annotations"]}
        require(found == set(classes), f"{name} has the classes {sorted(found)}")

    return check


def arrays(name: str, **shapes: tuple[int, ...]) -> Check:
    """A file of NumPy with arrays of these shapes."""

    def check(outcome: Outcome) -> None:
        with np.load(outcome.folder / name) as found:
            for key, shape in shapes.items():
                require(found[key].shape == shape, f"{key} in {name} is {found[key].shape}")

    return check


def is_json(name: str) -> Check:
    """A file that contains JSON."""

    def check(outcome: Outcome) -> None:
        value: Any = json.loads((outcome.folder / name).read_text())
        require(value, f"{name} is empty")

    return check


def is_picture(name: str) -> Check:
    """A picture that is not of one colour."""

    def check(outcome: Outcome) -> None:
        require(pixels(outcome.folder / name).std() > 1, f"{name} is empty")

    return check
