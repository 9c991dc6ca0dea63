"""Time to decode JPEG files with libjpeg-turbo directly and with Pillow, and compare the pixels.

    python benchmarks/jpeg_times.py [FILE_OR_FOLDER …]

Without arguments, it takes the built-in photos, enlarged to 1920x1080, in three kinds of JPEG.
"""

from __future__ import annotations

import argparse
import io
import sys
from pathlib import Path

import numpy as np
from PIL import Image

from eomt_deploy import decoding
from eomt_deploy.benchmarking.measure.clock import interleave
from eomt_deploy.benchmarking.measure.statistics import speedup
from eomt_deploy.sources import RgbImage, built_in_images, decode_image

SIZE = (1920, 1080)
KINDS = {
    "baseline, 4:2:0": {"quality": 90, "subsampling": 2},
    "baseline, 4:4:4": {"quality": 95, "subsampling": 0},
    "progressive, 4:2:0": {"quality": 90, "subsampling": 2, "progressive": True},
}


def encoded(options: dict[str, int]) -> list[bytes]:
    """The built-in photos as JPEG files."""
    files = []
    for path in built_in_images():
        with Image.open(path) as image:
            file = io.BytesIO()
            image.convert("RGB").resize(SIZE, Image.Resampling.BICUBIC).save(
                file, "JPEG", **options
            )
        files.append(file.getvalue())
    return files


def by_pillow(data: bytes) -> RgbImage:
    """Decode as without simplejpeg."""
    library, decoding.simplejpeg = decoding.simplejpeg, None
    try:
        return decode_image(data, "image")
    finally:
        decoding.simplejpeg = library


def compared(files: list[bytes], rounds: int) -> str:
    """Columns of the table for one kind of files."""
    equal = sum(np.array_equal(decode_image(d, "image"), by_pillow(d)) for d in files)
    times = interleave(
        {
            "ours": lambda: [decode_image(data, "image") for data in files],
            "pillow": lambda: [by_pillow(data) for data in files],
        },
        warmup=2,
        iterations=rounds,
    )
    ours, pillow = (float(np.median(times[name])) / len(files) for name in ("ours", "pillow"))
    ratio = speedup(times["pillow"], times["ours"])
    return (
        f"{pillow:.2f} ms | {ours:.2f} ms | {ratio.value:.2f} ({ratio.low:.2f}-{ratio.high:.2f}) | "
        f"{equal} of {len(files)}"
    )


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description="Compare decoders of JPEG files.")
    parser.add_argument("files", nargs="*", type=Path, metavar="FILE_OR_FOLDER")
    parser.add_argument("--rounds", type=int, default=40)
    options = parser.parse_args()
    if decoding.simplejpeg is None:
        sys.exit("error: simplejpeg is not installed")
    paths = [p for f in options.files for p in (sorted(f.rglob("*.jpg")) if f.is_dir() else [f])]
    if paths:
        kinds = {f"{len(paths)} files": [path.read_bytes() for path in paths]}
    else:
        kinds = {name: encoded(settings) for name, settings in KINDS.items()}
    print("| JPEG | Pillow | eomt-deploy | times as fast | equal pixels |\n|---|--:|--:|--:|--:|")
    for name, files in kinds.items():
        print(f"| {name} | {compared(files, options.rounds)} |", flush=True)


if __name__ == "__main__":
    main()
