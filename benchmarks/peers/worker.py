"""One row of benchmarks/peers.py in a process of its own, with the Python of its own environment.

    python worker.py FAMILY prepare TASK ROW WORK    # exports what the row needs; prints one line
    python worker.py FAMILY serve TASK ROW WORK      # answers requests until its input ends

A family is a module of this folder with two functions: ``prepare(task, row, work)`` writes the
files of the row into the work folder, and ``load(task, row, work)`` returns a :class:`Row`.

`serve` prints one JSON object per line, first ``{"ready": true, "versions": {...}}``, and then one
for each request: ``{"image": PATH}`` is answered with ``{"seconds", "cpu_seconds", "peak_bytes"}``;
with ``"labels": PATH``, the labels are also written to that .npy file. An error is answered with
``{"error": TEXT}``. Whatever libraries print goes to stderr.
"""

from __future__ import annotations

import importlib
import json
import os
import sys
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, TextIO

THREADS = 2
"""Number of CPU cores, and of threads, that each row may use."""


@dataclass(frozen=True)
class Row:
    """A model that is ready to predict.

    Attributes:
        predict: image path -> result, as a user of the library gets it. This is timed.
        labels: result -> int32 array [H, W]: class of each pixel, -1 for none. Not timed.
        packages: names of the packages whose versions are reported.
    """

    predict: Callable[[str], Any]
    labels: Callable[[Any], Any]
    packages: tuple[str, ...]


def limit_threads() -> None:
    """Keep this process, and all threads that it starts later, on :data:`THREADS` cores."""
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(THREADS)


def quiet() -> None:
    """No network access and no usage statistics while we measure."""
    os.environ |= {
        "HF_HUB_OFFLINE": "1", "LIGHTLY_TRAIN_EVENTS_DISABLED": "1", "CI": "true",
        "ORT_DISABLE_TELEMETRY": "1", "YOLO_OFFLINE": "1", "NO_ALBUMENTATIONS_UPDATE": "1",
    }  # fmt: skip


def let_torchvision_import() -> None:
    """Declare the operators that torchvision needs to be imported.

    The package index has torchvision only for PyTorch with CUDA. Its compiled operators cannot be
    loaded beside PyTorch for CPUs, and its import then ends with "operator torchvision::nms does
    not exist". No row calls these operators.
    """
    import torch

    try:
        torch.ops.torchvision.nms  # noqa: B018
    except (AttributeError, RuntimeError):
        library = torch.library.Library("torchvision", "DEF")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        let_torchvision_import.library = library  # type: ignore[attr-defined]  # keeps it alive


def peak_bytes() -> int:
    """Maximum resident memory of this process until now; Linux only."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])


def paint(masks: Any, classes: Any, size: tuple[int, int]) -> Any:
    """Class of each pixel; where instances overlap, the highest class.

    The fitted queries have ascending classes, and transformers draws instances in the order of the
    queries. So equal masks give equal labels, whatever order a library has.

    Args:
        masks: bool [N, H, W]. classes: [N]. size: (H, W), for N = 0.

    Returns:
        int32 [H, W], -1 where no instance is.
    """
    import numpy as np

    labels = np.full(size, -1, np.int32)
    for index in np.argsort(np.asarray(classes), kind="stable"):
        labels[np.asarray(masks[index]).astype(bool)] = int(classes[index])
    return labels


def answer(row: Row, request: Mapping[str, str]) -> dict[str, Any]:
    """Predict one image, and time it."""
    cpu, start = time.process_time(), time.perf_counter()
    result = row.predict(request["image"])
    found: dict[str, Any] = {
        "seconds": time.perf_counter() - start, "cpu_seconds": time.process_time() - cpu,
        "peak_bytes": peak_bytes(),
    }  # fmt: skip
    if "labels" in request:
        import numpy as np

        np.save(request["labels"], np.asarray(row.labels(result), np.int32))
    return found


def last_line(error: BaseException) -> str:
    """Type and message of an error, in one line."""
    return " ".join(traceback.format_exception_only(error)[-1].split())


def serve(make: Callable[[], Row], requests: TextIO, answers: TextIO) -> None:
    """Answer requests until the input ends."""

    def say(**found: Any) -> None:
        print(json.dumps(found), file=answers, flush=True)

    try:
        row = make()
    except Exception as error:
        traceback.print_exc()
        say(error=last_line(error))
        return
    say(ready=True, versions={name: version(name) for name in row.packages})
    for line in requests:
        try:
            say(**answer(row, json.loads(line)))
        except Exception as error:
            traceback.print_exc()
            say(error=last_line(error))


def main() -> None:
    family, action, task, name, work = sys.argv[1:]
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what libraries print must not be read as an answer
    limit_threads()
    quiet()

    def make() -> Row:
        rows = importlib.import_module(f"{family}_rows")
        if action == "prepare":
            rows.prepare(task, name, Path(work))
            return Row(lambda _: None, lambda _: None, ())
        return rows.load(task, name, Path(work))

    serve(make, sys.stdin, answers)


if __name__ == "__main__":
    main()
