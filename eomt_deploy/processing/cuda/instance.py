"""Instance results on the GPU: the same steps as :mod:`eomt_deploy.processing.instance`."""

from __future__ import annotations

import numpy as np

from eomt_deploy.cuda.array import DeviceArray
from eomt_deploy.cuda.device import Array
from eomt_deploy.processing.cuda.panoptic import plain_boxes
from eomt_deploy.processing.cuda.workspace import NOT_FINITE, GpuWorkspace, Pending, maps
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.instance import TOP_K, Candidate, Measured, instance_result
from eomt_deploy.processing.pixels import MEASURE, run_masks
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ModelSpec, Thresholds

FIRST_RUNS = 1 << 16
"""Number of runs that are fetched with the rest; images with more need a second copy."""
WORD = 32
"""Pixels per word of a mask."""


def start(
    workspace: GpuWorkspace,
    spec: ModelSpec,
    class_logits: DeviceArray,
    masks: DeviceArray,
    geometry: Geometry,
    thresholds: Thresholds,
) -> Pending:
    """Enqueue the post-processing of class logits [1, Q, C+1] and mask logits [1, Q, h, w]."""
    scratch = workspace.scratch
    height, width = size = geometry.image_size
    number, classes = spec.num_queries, len(spec.classes)
    kept = min(number, TOP_K)
    words = -(-width // WORD)
    bundle = scratch.bundle(
        "instance",
        not_finite=NOT_FINITE, ranked=((1,), np.int32), places=((TOP_K,), np.int32),
        scores=((TOP_K,), np.float32), chosen=((1,), np.int32), queries=((number,), np.int32),
        marks=((number,), np.int32), measures=((kept,), MEASURE),
    )  # fmt: skip
    at = bundle.pointer
    bits = scratch.array("masks", (kept, height, words), np.uint32)
    counts = scratch.array("counts", (kept, height), np.int32)
    spans = workspace.spans(spec.mask_size, geometry)

    workspace.find_not_finite(bundle, class_logits, masks)
    probabilities = workspace.softmax(class_logits)
    workspace.launch_blocks(
        "rank_queries", 1,
        probabilities.pointer, number, classes, TOP_K, thresholds.score, at("ranked"),
        at("places"), at("scores"), at("chosen"), at("queries"), at("marks"),
    )  # fmt: skip
    workspace.launch(
        "measure_masks", height * words,
        *maps(masks), *spans, *size, words, at("chosen"), at("queries"), bits.pointer,
        at("measures"),
        rows=kept,
    )  # fmt: skip
    rows = bits.pointer, *size, words, at("chosen"), counts.pointer, at("measures")
    workspace.launch("count_runs", height, *rows, rows=kept)
    workspace.launch_blocks(
        "place_rows", kept, at("chosen"), height, counts.pointer, at("measures")
    )

    def fetch_runs(capacity: int) -> Array:
        runs = scratch.array("runs", (capacity, 2), np.uint32)
        workspace.launch("write_runs", height, *rows, capacity, runs.pointer, rows=kept)
        return scratch.fetch("runs", runs)

    first_runs = fetch_runs(FIRST_RUNS)
    found = bundle.fetch()

    def finish() -> Segmentation:
        chosen = int(found["chosen"][0])
        measures = found["measures"][:chosen].copy()
        measures["box"] = plain_boxes(measures["box"], size)
        total = int(measures["runs"].sum())
        runs = first_runs
        if total > len(runs):
            runs = fetch_runs(total)
            workspace.device.synchronize(workspace.stream)
        masks_found = run_masks(size, measures, runs[:total].copy())  # pinned memory is reused
        measured = {
            query: Measured.of(mask, inside)
            for query, (mask, inside) in zip(
                found["queries"][:chosen].tolist(), masks_found, strict=True
            )
        }
        return instance_result(
            candidates(found, classes), measured, thresholds.score, size, spec.classes
        )

    return Pending(found, finish)


def candidates(found: dict[str, Array], classes: int) -> list[Candidate]:
    """The candidates as :func:`eomt_deploy.processing.instance.rank_queries` orders them."""
    ranked = int(found["ranked"][0])
    places, scores = found["places"][:ranked], found["scores"][:ranked]
    order = np.lexsort((places, -scores))
    return [
        Candidate(place // classes, place % classes, score)
        for place, score in zip(places[order].tolist(), scores[order].tolist(), strict=True)
    ]
