"""Images: files, and all other inputs of `load_image`."""

from __future__ import annotations

import io
import json
import os
from functools import cache
from pathlib import Path
from random import Random
from typing import Any

import numpy as np

from . import image_mutations, seeds
from .contract import lot, require
from .mutations import Files, Mutator

# Images


@cache
def segmenter(task: Any) -> Any:
    from eomt_deploy import Segmenter

    path = Path(os.environ["HOSTILE_SCRATCH"]) / f"{task}.onnx"
    path.write_bytes(seeds.onnx_model(task))
    return Segmenter(path, backend="onnxruntime", device="cpu", threads=1)


def check_image(pixels: Any) -> None:
    require(isinstance(pixels, np.ndarray) and pixels.dtype == np.uint8, f"{type(pixels)}")
    require(type(pixels) is np.ndarray, f"the pixels are a {type(pixels).__name__}")
    require(pixels.ndim == 3 and pixels.shape[2] == 3 and 0 not in pixels.shape, f"{pixels.shape}")


def use_image(source: Any, pixels: Any, task: str) -> None:
    """Check that a model can process an accepted image."""
    result = segmenter(task).predict(source)
    require(result.size == pixels.shape[:2], f"a result of {result.size} for {pixels.shape}")
    result.overlay().tobytes()
    json.dumps(result.to_coco())


def image_files() -> list[Files]:
    return [{f"image{suffix}": data} for suffix, data in seeds.images()]


def mutate_images(m: Mutator) -> Files:
    from eomt_deploy.sources import IMAGE_SUFFIXES

    known = seeds.images() if m.chance(0.8) else seeds.foreign_images()
    suffix, data = m.rng.choice(known)
    others = [m.rng.choice(known)[1] for _ in range(2)]
    data = image_mutations.mutate_image(m, data, others)
    if m.chance(0.1):
        data = image_mutations.mutate_image(m, data, others)
    if m.chance(0.1):
        suffix = m.rng.choice(sorted(IMAGE_SUFFIXES))
    return {f"image{suffix}": data}


def run_image(folder: Path) -> None:
    from eomt_deploy.sources import load_image

    path = next(folder.iterdir())
    pixels = load_image(path)
    check_image(pixels)
    if pixels.size < 2_000_000 and lot(folder, 8):
        use_image(path, pixels, ("semantic", "instance", "panoptic")[pixels.size % 3])


# Other inputs of load_image, described by a recipe so that they can be reproduced

DTYPES = ("uint8", "uint8", "uint8", "int8", "uint16", "int32", "int64", "float16", "float32",
          "bool",
          "complex64", "object", "S1", "U1", "M8[s]", ">u2")  # fmt: skip
SHAPES = ([5, 7, 3], [5, 7], [5, 7, 1], [5, 7, 4], [5, 7, 2], [3, 5, 7], [1, 5, 7, 3], [0, 7, 3],
          [7, 0],
          [], [5], [5, 7, 5], [1, 1], [1, 1, 3], [300, 1, 3], [1, 300], [2, 2, 2, 2,
          2])  # fmt: skip
FORMS = ("plain", "matrix", "masked", "memmap", "strided", "reversed", "broadcast", "fortran",
         "subclass",
         "read-only", "record")  # fmt: skip
MODES = ("1", "L", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16", "LA",
         "PA", "RGBa",
         "RGBX", "La", "I;16B")  # fmt: skip
PATHS = ("", ".", "..", "/", "missing.png", "a\0b.jpg", "\udcff.png", "\ud800.png",
         "x" * 300 + ".png",
         "x/" * 3000 + "a.png", "http:/a/b.jpg", "file:///etc/passwd", "~/a.png", "/dev/null",
         "*.png",
         "a\nb.png", "[red].png", "/proc/self/mem", " ", "image.png/", "CON", "é.png")  # fmt: skip
OBJECTS: tuple[Any, ...] = (None, 0, 1.5, True, b"bytes", [], {}, [[0, 0], [0, 0]], "closed",
                            "lazy",
                            "bytesio", "lying")  # fmt: skip


def recipe_files(recipe: dict[str, Any]) -> Files:
    return {"recipe.json": json.dumps(recipe).encode()}


def valid_recipes() -> list[Files]:
    array = {"kind": "array", "dtype": "uint8", "shape": [5, 7, 3], "form": "plain", "order": "bgr"}
    return [recipe_files(array), recipe_files({"kind": "pil", "mode": "RGB", "size": [7, 5]})]


def mutate_recipes(m: Mutator) -> Files:
    kind = m.rng.choice(("array", "array", "pil", "pil", "path", "object"))
    recipe: dict[str, Any] = {"kind": kind}
    if kind == "array":
        recipe |= {"dtype": m.rng.choice(DTYPES), "shape": m.rng.choice(SHAPES),
                   "form": m.rng.choice(FORMS),
                   "order": m.rng.choice(("rgb", "rgb", "rgb", "bgr", "BGR", "", None,
                   1))}  # fmt: skip
    elif kind == "pil":
        recipe |= {"mode": m.rng.choice(MODES), "exif": m.rng.getrandbits(32) * m.chance(0.5),
                   "size": m.rng.choice(([7, 5], [1, 1], [0, 5], [0, 0], [1, 400], [500,
                   2]))}  # fmt: skip
    elif kind == "path":
        recipe |= {"path": m.rng.choice(PATHS), "as": m.rng.choice(("str", "Path"))}
    else:
        recipe["object"] = m.rng.randrange(len(OBJECTS))
    m.note(json.dumps(recipe))
    return recipe_files(recipe)


def _array(recipe: dict[str, Any], folder: Path) -> Any:
    shape, form = tuple(recipe["shape"]), recipe["form"]
    array = np.zeros(shape, recipe["dtype"])
    if array.dtype.kind in "uif":
        array = (np.arange(array.size) % 200).reshape(shape).astype(array.dtype)
    if form == "matrix" and array.ndim == 2 and array.dtype.kind in "uifb":
        return np.asmatrix(array)
    if form == "masked":
        return np.ma.masked_array(array, mask=np.ones(shape, bool))
    if form == "memmap" and array.size and array.dtype.kind in "uif":
        mapped = np.memmap(folder / "memory", array.dtype, "w+", shape=shape or (1,))
        return mapped
    if form == "strided" and array.ndim:
        return array[::2]
    if form == "reversed" and array.ndim:
        return array[::-1]
    if form == "broadcast":
        return np.broadcast_to(array, (5, *shape[1:]) if shape and shape[0] == 1 else shape)
    if form == "fortran":
        return np.asfortranarray(array)
    if form == "record":
        return np.zeros(shape, [("r", "u1"), ("g", "u1")])
    if form == "read-only":
        array.flags.writeable = False
    return array


def _pil(recipe: dict[str, Any]) -> Any:
    from PIL import Image

    image = Image.new(recipe["mode"], tuple(recipe["size"]))
    if recipe.get("exif"):
        m = Mutator(Random(recipe["exif"]))
        image.info["exif"] = b"Exif\0\0" + image_mutations.odd_exif(m)
    return image


def _object(index: int) -> Any:
    from PIL import Image

    value = OBJECTS[index]
    buffer = io.BytesIO(seeds.images()[2][1])
    if value == "bytesio":
        return buffer
    if value == "lazy":
        return Image.open(io.BytesIO(seeds.images()[2][1][:-40]))
    if value == "closed":
        image = Image.open(buffer)
        image.close()
        return image
    if value == "lying":
        image = Image.open(buffer)
        buffer.truncate(60)
        return image
    return value


def run_recipe(folder: Path) -> None:
    from eomt_deploy.errors import EomtDeployError
    from eomt_deploy.sources import load_image

    recipe = json.loads((folder / "recipe.json").read_bytes())
    options = {}
    if recipe["kind"] == "array":
        source = _array(recipe, folder)
        options = {"color_order": recipe["order"]}
    elif recipe["kind"] == "pil":
        try:
            source = _pil(recipe)
        except ValueError as error:  # a mode that this Pillow does not have
            raise EomtDeployError(f"not made: {error}") from error
    elif recipe["kind"] == "path":
        source = Path(recipe["path"]) if recipe["as"] == "Path" else recipe["path"]
    else:
        source = _object(recipe["object"])
    pixels = load_image(source, **options)
    check_image(pixels)
    use_image(pixels, pixels, "panoptic")
