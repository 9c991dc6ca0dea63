"""Scores from results and labels, with the metrics of hotcoco.

Evidence is stored per image and can be summed, so that an evaluation can be resumed, show a running
score and use a bootstrap over images.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import hotcoco
import numpy as np
from hotcoco import metrics
from hotcoco.panoptic import PanopticEval

from eomt_deploy.evaluation.truth import Truth
from eomt_deploy.masks import Rle
from eomt_deploy.pixel_labels import VOID
from eomt_deploy.result import Segmentation
from eomt_deploy.spec import ModelSpec, Task

Evidence = dict[str, Any]
"""Contribution of one image to the scores, ready for JSON."""

EVALUATOR = f"hotcoco {hotcoco.__version__}"


@dataclass(frozen=True)
class Scores:
    """Scores in percent.

    Attributes:
        main: name of the main score.
        summary: all overall scores by name; groups without labels or predictions are left out.
        per_class: name and scores of each class with labels or predictions.
    """

    main: str
    summary: Mapping[str, float]
    per_class: Sequence[Mapping[str, Any]]

    @property
    def value(self) -> float | None:
        """The main score; None if nothing could be scored."""
        return self.summary.get(self.main)


class Scorer(Protocol):
    """Scorer of one task."""

    main: str

    def evidence(self, truth: Truth, result: Segmentation) -> Evidence: ...

    def scores(self, items: Sequence[Evidence]) -> Scores: ...


def scorer_for(spec: ModelSpec) -> Scorer:
    """The scorer of a model's task."""
    kinds: dict[Task, type[Any]] = {
        "semantic": SemanticScorer,
        "instance": InstanceScorer,
        "panoptic": PanopticScorer,
    }
    scorer: Scorer = kinds[spec.task](spec)
    return scorer


class SemanticScorer:
    """mIoU of the summed confusion matrix; void pixels are ignored."""

    main = "mIoU"

    def __init__(self, spec: ModelSpec) -> None:
        self.names = [info.name for info in spec.classes]

    def evidence(self, truth: Truth, result: Segmentation) -> Evidence:
        assert truth.class_map is not None
        assert result.class_map is not None
        known = truth.class_map != VOID
        counts = metrics.pixel_confusion(
            truth.class_map[known], result.class_map[known], len(self.names)
        )
        rows, columns = np.nonzero(counts)
        cells = zip(rows.tolist(), columns.tolist(), counts[rows, columns].tolist(), strict=True)
        return {"confusion": [list(cell) for cell in cells]}

    def scores(self, items: Sequence[Evidence]) -> Scores:
        total = np.zeros((len(self.names), len(self.names)), np.uint64)
        for item in items:
            for row, column, count in item["confusion"]:
                total[row, column] += np.uint64(count)
        found = metrics.mean_iou(total)
        summary = {name: found[name] for name in ("mIoU", "fwIoU", "mAcc", "aAcc")}
        rows = [
            {"class": name, "IoU": _percent(found["IoU"][i]), "Acc": _percent(found["Acc"][i])}
            for i, name in enumerate(self.names)
            if metrics.is_computed(found["IoU"][i])
        ]
        return Scores(self.main, _computed(summary), rows)


class PanopticScorer:
    """PQ, SQ and RQ, with the same handling of crowd and void as panopticapi."""

    main = "PQ"

    def __init__(self, spec: ModelSpec) -> None:
        self.classes = spec.classes
        self._categories = [
            {"id": c.id + 1, "name": c.name, "isthing": int(c.thing)} for c in spec.classes
        ]

    def evidence(self, truth: Truth, result: Segmentation) -> Evidence:
        labelled = [(s.class_id, s.rle, s.crowd) for s in truth.segments]
        found = [(s.class_id, s.rle, False) for s in result.segments]
        evaluation = PanopticEval(
            self._document(truth.size, labelled), self._document(truth.size, found)
        )
        evaluation.evaluate()
        return {
            "matches": {
                str(int(category) - 1): [row["iou"], row["tp"], row["fp"], row["fn"]]
                for category, row in evaluation.results()["per_class"].items()
                if row["tp"] or row["fp"] or row["fn"]
            }
        }

    def _document(
        self, size: tuple[int, int], segments: Sequence[tuple[int, Rle, bool]]
    ) -> hotcoco.COCO:
        return hotcoco.COCO(
            {
                "images": [{"id": 1, "height": size[0], "width": size[1]}],
                "categories": self._categories,
                "annotations": [
                    {
                        "id": index,
                        "image_id": 1,
                        "category_id": class_id + 1,
                        "iscrowd": int(crowd),
                        "area": hotcoco.mask.area(rle),
                        "bbox": hotcoco.mask.to_bbox(rle).tolist(),
                        "segmentation": rle,
                    }
                    for index, (class_id, rle, crowd) in enumerate(segments, 1)
                ],
            }
        )

    def scores(self, items: Sequence[Evidence]) -> Scores:
        total = np.zeros((len(self.classes), 4))
        for item in items:
            for class_id, counts in item["matches"].items():
                total[int(class_id)] += counts
        quality = np.array(
            [metrics.panoptic_quality(t[0], int(t[1]), int(t[2]), int(t[3])) for t in total]
        )
        seen = total[:, 1:].sum(axis=1) > 0
        things = np.array([c.thing for c in self.classes])
        summary = {}
        for suffix, group in (("", seen), ("_things", seen & things), ("_stuff", seen & ~things)):
            for column, name in enumerate(("PQ", "SQ", "RQ")):
                if group.any():
                    summary[name + suffix] = float(quality[group, column].mean())
        rows = [
            {
                "class": info.name,
                **{n: _percent(quality[info.id, i]) for i, n in enumerate(("PQ", "SQ", "RQ"))},
                **{n: int(total[info.id, i + 1]) for i, n in enumerate(("TP", "FP", "FN"))},
            }
            for info in self.classes
            if seen[info.id]
        ]
        return Scores(self.main, _computed(summary), rows)


class InstanceScorer:
    """COCO mask AP: 100 detections per image, IoU 0.50 to 0.95, crowd ignored."""

    main = "AP"

    def __init__(self, spec: ModelSpec) -> None:
        self.classes = spec.classes

    def evidence(self, truth: Truth, result: Segmentation) -> Evidence:
        labels = [
            {"c": s.class_id, "rle": _text(s.rle), "crowd": int(s.crowd), "area": s.area}
            for s in truth.segments
        ]
        found = [
            {"c": s.class_id, "rle": _text(s.rle), "score": s.score}
            for s in result.segments
            if s.thing
        ]
        return {"size": list(truth.size), "labels": labels, "found": found}

    def scores(self, items: Sequence[Evidence]) -> Scores:
        images: list[dict[str, Any]] = []
        labels: list[dict[str, Any]] = []
        found: list[dict[str, Any]] = []
        for image_id, item in enumerate(items, 1):
            size = item["size"]
            images.append({"id": image_id, "height": size[0], "width": size[1]})
            for label in item["labels"]:
                base = self._annotation(label, image_id, size, len(labels) + 1)
                labels.append(base | {"iscrowd": label["crowd"]})
            for detection in item["found"]:
                base = self._annotation(detection, image_id, size, len(found) + 1)
                found.append(base | {"score": detection["score"]})
        categories = [{"id": c.id + 1, "name": c.name} for c in self.classes if c.thing]
        if not labels:
            return Scores(self.main, {}, [])
        truth = hotcoco.COCO({"images": images, "annotations": labels, "categories": categories})
        evaluation = hotcoco.COCOeval(truth, truth.load_res(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summary_lines()  # the same as summarize(), but prints nothing
        results = evaluation.get_results(per_class=True)
        names = ("AP", "AP50", "AP75", "APs", "APm", "APl", "AR100")
        summary = {name: results[name] for name in names if name in results}
        rows = [
            {"class": c.name, "AP": _percent(results[f"AP/{c.name}"])}
            for c in self.classes
            if c.thing and metrics.is_computed(results.get(f"AP/{c.name}", -1.0))
        ]
        return Scores(self.main, _computed(summary), rows)

    def _annotation(
        self, item: Mapping[str, Any], image_id: int, size: Sequence[int], identity: int
    ) -> dict[str, Any]:
        rle = {"size": list(size), "counts": item["rle"]}
        return {
            "id": identity,
            "image_id": image_id,
            "category_id": item["c"] + 1,
            "segmentation": rle,
            # Without a box, because its area would be used as the area of the mask.
            "area": hotcoco.mask.area(rle) if item.get("area") is None else item["area"],
        }


def _text(rle: Rle) -> str:
    counts = rle["counts"]
    return counts.decode("ascii") if isinstance(counts, bytes) else str(counts)


def _percent(value: float) -> float:
    return round(100 * float(value), 3)


def _computed(summary: Mapping[str, float]) -> dict[str, float]:
    return {name: _percent(v) for name, v in summary.items() if metrics.is_computed(v)}
