"""Exported models: descriptions, ONNX, sidecars, OpenVINO's XML, packages."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from . import container_mutations as containers
from . import seeds
from .contract import lot, require
from .mutations import Files, Mutator

MANY_VALUES = 4_000_000
"""Number of logits above which an accepted description is not run, to save time."""

# Descriptions


def use_spec(spec: Any) -> None:
    """An accepted description is equal after writing and reading, and can be used for a result."""
    from eomt_deploy.processing import Processor
    from eomt_deploy.spec import ModelSpec

    require(ModelSpec.from_json(spec.to_json()) == spec, "the description changes when written")
    spec.to_json().encode()
    hash(spec.precision), repr(spec)
    height, width = spec.image_size
    values = spec.num_queries * (len(spec.classes) + spec.mask_size[0] * spec.mask_size[1] + 1)
    if max(values, height * width * 3) > MANY_VALUES:
        return
    processor = Processor(spec, threads=1)
    image_path = np.zeros((24, 30, 3), np.uint8)
    inputs, geometry = processor.preprocess(image_path)
    if values * len(inputs) > MANY_VALUES:
        return
    rng = np.random.default_rng(values)
    shape = (len(inputs), spec.num_queries)
    classes = rng.normal(size=(*shape, len(spec.classes) + 1), scale=6).astype(np.float32)
    masks = rng.normal(size=(*shape, *spec.mask_size), scale=6).astype(np.float32)
    result = processor.postprocess(classes, masks, geometry)
    result.overlay(image_path).tobytes()
    json.dumps(result.to_coco()).encode()
    if result.task != "instance":
        result.label_image()


def mutate_description(m: Mutator) -> Files:
    return {"spec.json": m.json(m.rng.choice(seeds.specs()).to_json().encode())}


def run_description(folder: Path) -> None:
    from eomt_deploy.spec import ModelSpec

    text = (folder / "spec.json").read_bytes().decode("utf-8", "surrogateescape")
    use_spec(ModelSpec.from_json(text))


def mutate_onnx(m: Mutator) -> Files:
    task = m.rng.choice(("semantic", "instance", "panoptic"))
    complete = seeds.onnx_model(task)
    kind = m.rng.choice(("description", "description", "protobuf", "protobuf", "bytes"))
    if kind == "description":
        return {"m.onnx": seeds.onnx_with(m.json(seeds.spec(task).to_json().encode()))}
    if kind == "protobuf":
        return {"m.onnx": containers.mutate_protobuf(m, complete)}
    return {"m.onnx": m.bytes(complete, [seeds.onnx_model("panoptic")])}


def run_onnx(folder: Path) -> None:
    from eomt_deploy import Segmenter
    from eomt_deploy.model_file import read_model_file, read_onnx_metadata

    path = folder / "m.onnx"
    for key, value in read_onnx_metadata(path).items():
        require(isinstance(key, str) and isinstance(value, str), "metadata are no text")
    model = read_model_file(path)
    use_spec(model.spec)
    if lot(folder, 4):
        with Segmenter(path, backend="onnxruntime", device="cpu", threads=1) as opened:
            opened.predict(np.zeros((24, 30, 3), np.uint8))


def sidecar_files() -> list[Files]:
    return [{"m.engine": b"plan", "m.engine.json": text.encode()} for text in seeds.sidecars()]


def mutate_sidecar(m: Mutator) -> Files:
    files = dict(m.rng.choice(sidecar_files()))
    files["m.engine.json"] = m.json(files["m.engine.json"])
    if m.chance(0.05):
        del files["m.engine"]
    return files


def run_sidecar(folder: Path) -> None:
    from eomt_deploy.sidecar import Sidecar, check_plan, known_target, read_sidecar

    engine = folder / "m.engine"
    sidecar = read_sidecar(engine)
    require(Sidecar.from_json(sidecar.to_json()) == sidecar, "the sidecar changes when written")
    known_target(sidecar)
    for capability in ((7, 5), (8, 9), (12, 0)):
        sidecar.runs_on(capability)
    check_plan(engine, sidecar)
    use_spec(sidecar.spec)


XML = """<?xml version="1.0"?>
<net name="hostile" version="11"><layers></layers><edges></edges>
<rt_info><framework><eomt_deploy.spec value="{spec}" /></framework>
<eomt_deploy><certificate value="{certificate}" /><arithmetic value="fp32" />
<onnx value="{onnx}" /><onnx_sha256 value="{sha256}" /></eomt_deploy></rt_info></net>"""
ENTITIES = '<!DOCTYPE net [<!ENTITY a "aaaaaaaaaa">' + "".join(
    f'<!ENTITY {new} "{f"&{old};" * 10}">' for old, new in zip("abcdefgh", "bcdefghi", strict=True)
) + "]>"  # fmt: skip
EXTERNAL = '<!DOCTYPE net [<!ENTITY i SYSTEM "file:///etc/passwd">]>'


def xml_with(
    spec: bytes, certificate: bytes = b"", onnx: bytes = b"m.onnx", sha256: bytes = b"0" * 64
) -> bytes:
    from xml.sax.saxutils import escape

    values = {
        "spec": spec, "certificate": certificate or seeds.CERTIFICATE.to_json().encode(),
        "onnx": onnx, "sha256": sha256,
    }  # fmt: skip
    quoted = {
        name: escape(value.decode("utf-8", "surrogateescape"), {'"': "&quot;", "\n": "&#10;"})
        for name, value in values.items()
    }
    return XML.format(**quoted).encode("utf-8", "surrogateescape")


def xml_files() -> list[Files]:
    return [{"m.xml": xml_with(spec.to_json().encode())} for spec in seeds.specs()]


def mutate_xml(m: Mutator) -> Files:
    spec = m.rng.choice(seeds.specs()).to_json().encode()
    kind = m.rng.choice(
        ("description", "certificate", "origin", "bytes", "bytes", "entities", "deep", "encoding")
    )
    m.note(f"xml {kind}")
    if kind == "description":
        return {"m.xml": xml_with(m.json(spec))}
    if kind == "certificate":
        return {"m.xml": xml_with(spec, m.json(seeds.CERTIFICATE.to_json().encode()))}
    if kind == "origin":
        return {"m.xml": xml_with(spec, b"", m.bytes(b"m.onnx"), m.bytes(b"0" * 64))}
    data = xml_with(spec)
    if kind == "entities":
        doctype, name = m.rng.choice(((ENTITIES, "&i;"), (EXTERNAL, "&i;")))
        text = data.decode().replace("?>\n", f"?>{doctype}\n", 1)
        return {"m.xml": text.replace("<layers>", f"<layers>{name}").encode()}
    if kind == "deep":
        depth = m.rng.choice((100, 100_000))
        return {"m.xml": data.replace(b"<layers>", b"<layers>" + b"<a>" * depth + b"</a>" * depth)}
    if kind == "encoding":
        name = m.rng.choice(("utf-16", "utf-7", "latin-1", "x", "idna", "base64"))
        text = data.decode().replace('"1.0"', f'"1.0" encoding="{name}"')
        return {"m.xml": text.encode("utf-16" if name == "utf-16" else "utf-8")}
    return {"m.xml": m.bytes(data)}


def run_xml(folder: Path) -> None:
    from eomt_deploy.model_file import read_xml

    facts = read_xml(folder / "m.xml")
    require(facts.arithmetic in (None, "fp32", "bf16", "fp16"), "the arithmetic is unknown")
    require("/" not in facts.onnx, "the model is in another folder")
    if facts.certificate:
        require(facts.certificate.images > 0, "the certificate has no images")
        str(facts.certificate)
    use_spec(facts.spec)


# AOTInductor packages: only the part that is read before PyTorch is called


def package_entries() -> list[containers.Entry]:
    metadata = {
        "eomt_deploy.spec": seeds.spec().to_json(), "AOTI_DEVICE_KEY": "cpu",
        "AOTI_PLATFORM": "linux", "AOTI_CPU_ISA": "AVX2",
    }  # fmt: skip
    member = "m/data/aotinductor/model/x.wrapper_metadata.json"
    return [
        containers.entry("m/archive_format", b"pt2"),
        containers.entry(member, json.dumps(metadata).encode()),
        containers.entry("m/data/aotinductor/model/x.so", b"\x7fELF" + bytes(200), deflated=True),
    ]


def mutate_package(m: Mutator) -> Files:
    entries = package_entries()
    if m.chance(0.4):
        content = m.json(entries[1].packed)
        entries[1] = containers.entry(entries[1].name.decode(), content, deflated=m.chance(0.5))
        return {"m.pt2": containers.write_zip(entries)}
    return {"m.pt2": containers.mutate_zip(m, entries)}


def run_package(folder: Path) -> None:
    from eomt_deploy.backends.aotinductor.engine import check_device, check_processor
    from eomt_deploy.model_file import parse_spec
    from eomt_deploy.package_metadata import read_metadata

    path = folder / "m.pt2"
    metadata = read_metadata(path)
    spec = parse_spec(metadata, path)
    check_device(metadata, None, path)
    check_processor(metadata, "x86_64", ("avx2", "avx512f"), path)
    use_spec(spec)


def valid_specs() -> list[Files]:
    return [{"spec.json": spec.to_json().encode()} for spec in seeds.specs()]


def valid_onnx() -> list[Files]:
    return [{"m.onnx": seeds.onnx_model(task)} for task in ("semantic", "instance", "panoptic")]


def valid_packages() -> list[Files]:
    return [{"m.pt2": containers.write_zip(package_entries())}]
