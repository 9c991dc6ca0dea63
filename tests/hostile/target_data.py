"""Class lists, labelled data and benchmark reports."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

from . import container_mutations as containers
from . import image_mutations, seeds
from . import seed_datasets as datasets
from .contract import lot, require
from .mutations import Files, Mutator
from .target_images import segmenter
from .target_models import use_spec


def class_files() -> list[Files]:
    things = [{"name": "a", "thing": True}, {"name": "b", "thing": False, "color": [1, 2, 3]}]
    return [{"c.json": json.dumps(value).encode()} for value in (seeds.CLASSES, things)]


def mutate_classes(m: Mutator) -> Files:
    extra = (
        ["road", "car"],
        [{"id": 1, "name": "b", "thing": True}, {"id": 0, "name": "a", "thing": False}],
    )
    known = [files["c.json"] for files in class_files()] + [json.dumps(e).encode() for e in extra]
    return {"c.json": m.json(m.rng.choice(known))}


def run_classes(folder: Path) -> None:
    from eomt_deploy.classes import read_classes

    use_spec(replace(seeds.spec(), classes=read_classes(folder / "c.json")))


def zipped(files: Files) -> Files:
    entries = [containers.entry(name, data, deflated=True) for name, data in files.items()]
    return {"data.zip": containers.write_zip(entries)}


def dataset_files() -> list[Files]:
    plain = [datasets.coco_panoptic(), datasets.coco_instances(), datasets.label_folder()]
    return [*plain, zipped(datasets.coco_panoptic())]


def mutate_dataset(m: Mutator) -> Files:
    files = dict(m.rng.choice(dataset_files()[:3]))
    pictures = [data for name, data in files.items() if not name.endswith(".json")]
    if m.chance(0.2):
        entries = [containers.entry(n, d, deflated=m.chance(0.5)) for n, d in files.items()]
        return {"data.zip": containers.mutate_zip(m, entries, pictures)}
    name = m.rng.choice([n for n in files if n.endswith(".json")] * 4 + list(files))
    if m.chance(0.05):
        del files[name]
    elif m.chance(0.05):
        odd = m.rng.choice(
            ("labels/0.PNG", "labels/x.jpg", "._a.jpg", "images/0.png", "a b/c.json")
        )
        files[odd] = files.pop(name)
        m.note(f"{name} renamed to {odd}")
    elif name.endswith(".json"):
        files[name] = m.json(files[name])
    else:
        files[name] = image_mutations.mutate_image(m, files[name], pictures)
        m.note(f"in {name}")
    return zipped(files) if m.chance(0.1) else files


def run_dataset(folder: Path) -> None:
    from eomt_deploy.evaluation import evaluate, open_dataset
    from eomt_deploy.evaluation.evaluate import read_sample

    names = {PurePosixPath(p.name).name for p in folder.rglob("*.json")}
    tasks: Iterable[Any] = ("panoptic", "semantic")
    if any("instances" in name for name in names):
        tasks = ("instance",)
    elif (folder / "labels").is_dir():
        tasks = ("semantic",)
    for task in tasks:
        dataset = open_dataset([folder], seeds.spec(task))
        for sample in dataset.samples[:4]:
            _, truth = read_sample(sample)
            require(len(truth.size) == 2, f"a truth of size {truth.size}")
        if lot(folder, 4) and len(dataset.samples) < 10:
            evaluate(segmenter(task), dataset).to_dict()


def report_files() -> list[Files]:
    return [{"r.json": seeds.suite_report()}]


def mutate_report(m: Mutator) -> Files:
    data = seeds.suite_report()
    if m.chance(0.2):
        facts = {"kind": "facts", "left_out": ["x"], "failed": ["a\nb"]}
        data = json.dumps({"kind": "sections", "sections": [json.loads(data), facts]}).encode()
    return {"r.json": m.json(data)}


def run_report(folder: Path) -> None:
    from eomt_deploy.benchmarking import tables
    from eomt_deploy.benchmarking.paper.report import read_reports

    for report in read_reports(folder / "r.json"):
        tables.markdown(report)
