"""The images of a benchmark: found as `predict` finds them, and limited in number and memory."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from eomt_deploy.addresses import is_address, without_secrets
from eomt_deploy.decoding import ENCODED_BYTES_PER_PIXEL, check_max_pixels
from eomt_deploy.errors import UsageError
from eomt_deploy.image_search import search_images
from eomt_deploy.sources import RgbImage, load_image
from eomt_deploy.units import counted
from eomt_deploy.video import is_live, is_video, open_video
from eomt_deploy.web import download

STDIN = "-"
MAX_IMAGES = 16
"""Maximum number of images that are measured in turn."""
FRAMES_PER_SECOND = 1
"""How many frames are taken per second of a video: neighbouring frames are almost equal."""


@dataclass(frozen=True)
class BenchImage:
    """One image, in memory.

    Attributes:
        name: file name or address, without secrets.
        pixels: uint8 RGB [H, W, 3].
        source: what users pass for it: a path, or the content of an image file (web address,
            standard input). None for a frame of a video, which is decoded with the frames before.
    """

    name: str
    pixels: RgbImage
    source: Path | bytes | None

    @property
    def size(self) -> str:
        """Height and width, e.g. ``480x640``."""
        return "{}x{}".format(*self.pixels.shape[:2])


@dataclass(frozen=True)
class BenchSources:
    """Images that can be measured. They are read one after the other.

    Attributes:
        images: paths, web addresses, or ``-`` for standard input; empty for a video.
        video: path or address of a video file.
        found: number of images that were found; None for a video.
        note: what the search left out; may be empty.
        max_pixels: maximum number of pixels of an image; None takes 100,000,000.
    """

    images: tuple[Path | str, ...] = ()
    video: str | None = None
    found: int | None = None
    note: str = ""
    max_pixels: int | None = None

    def read(self, limit: int = MAX_IMAGES) -> Iterator[BenchImage]:
        """Read a limited number of images: every n-th of a long list, one per second of a video.

        Raises:
            ImageError: an image or the video cannot be read.
            MissingDependencyError: a video needs PyAV, which is not installed.
        """
        if self.video is not None:
            yield from islice(self._frames(self.video), limit)
            return
        for image in spread(self.images, limit):
            yield self._image(image)

    def _image(self, image: Path | str) -> BenchImage:
        pixels = check_max_pixels(self.max_pixels)
        maximum = pixels * ENCODED_BYTES_PER_PIXEL + (1 << 20)
        source: Path | bytes
        if isinstance(image, Path):
            name, source = image.name, image
        elif image == STDIN:
            name, source = "standard input", sys.stdin.buffer.read(maximum)
        else:  # downloaded once: the network is not measured
            name, source = without_secrets(image), download(image, maximum)
        return BenchImage(name, load_image(source, max_pixels=pixels), source)

    def _frames(self, video: str) -> Iterator[BenchImage]:
        with open_video(video, max_pixels=self.max_pixels) as opened:
            due = 0.0
            for frame in opened:
                if frame.time >= due:
                    due = frame.time + 1 / FRAMES_PER_SECOND
                    yield BenchImage(f"{opened.name} at {frame.time:.2f} s", frame.pixels, None)


def bench_sources(sources: Sequence[str | Path], max_pixels: int | None = None) -> BenchSources:
    """Find images as `predict` does: files, folders, globs, lists, web addresses, ``-``, a video.

    Raises:
        ImageError: there is no image.
        UsageError: videos and images together, several videos, or a camera or stream.
    """
    texts = tuple(dict.fromkeys(map(str, sources)))
    if any(map(is_video, texts)):
        if len(texts) > 1:
            raise UsageError(
                "A video is measured alone, but --image has "
                f"{counted(len(texts), 'value')}: {', '.join(map(without_secrets, texts))}.",
                fix="Pass one video, or only images.",
            )
        if is_live(texts[0]):
            raise UsageError(
                f"{without_secrets(texts[0])} is a camera or a stream, which gives other images "
                "in each run.",
                fix="Record a part of it, and pass the file.",
            )
        return BenchSources(video=texts[0], max_pixels=max_pixels)
    if STDIN in texts:
        if len(texts) > 1:
            raise UsageError(
                "Standard input holds one image, and no others can be measured with it.",
                fix="Pass only --image -, or only the other images.",
            )
        return BenchSources((STDIN,), found=1, max_pixels=max_pixels)
    search = search_images(texts, addresses=True)
    images: tuple[Path | str, ...] = (*search.paths, *search.addresses)
    return BenchSources(images, found=len(images), note=search.note, max_pixels=max_pixels)


def input_files(sources: Sequence[str | Path]) -> list[Path]:
    """The existing files and folders in a list of sources, which no output may replace."""
    texts = map(str, sources)
    paths = [Path(text) for text in texts if text != STDIN and not is_address(text)]
    return [path for path in paths if path.exists()]


def spread(images: Sequence[Path | str], limit: int) -> list[Path | str]:
    """A limited number of items of a list, evenly spread, from the first one on."""
    count = min(limit, len(images))
    return [images[index * len(images) // count] for index in range(count)]


def described(images: Sequence[BenchImage], found: int | None) -> str:
    """What is measured, for reports: ``coffee.jpg (400x600)``, or the number and the sizes.

    Args:
        images: images that are measured, at least one.
        found: number of images that were found; None for frames of a video.
    """
    if len(images) == 1 and found in (1, None):
        return f"{images[0].name} ({images[0].size})"
    if found is None:
        number = f"{len(images)} frames of a video"
    else:
        number = f"{len(images)} of {counted(found, 'image')}"
    by_area = sorted(images, key=lambda image: image.pixels.size)
    smallest, largest = by_area[0].size, by_area[-1].size
    sizes = smallest if smallest == largest else f"{smallest} to {largest}"
    return f"{number} in turn ({sizes}), from {images[0].name} to {images[-1].name}"
