"""The panoptic kernel in numba against the one in C: why the kernels are in C.

    pip install numba; python benchmarks/numba_panoptic.py [--rounds 30] [--json FILE]

The same algorithm, the same result; numba also pays for its import and for compiling at first call.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
from cpu_cases import console, made_up_outputs, show, spec_of, time_jobs

from eomt_deploy.benchmarking.machine.environment import environment
from eomt_deploy.devices import usable_cores
from eomt_deploy.processing import Processor, pixels
from eomt_deploy.processing.panoptic import choose_queries

ROWS, COLUMNS = 32, 64


def compiled() -> Any:
    """``paint_panoptic`` of ``native/panoptic.c``, in numba."""
    from numba import njit, prange

    @njit(inline="always", fastmath=True, error_model="numpy")
    def sigmoid(x):
        y = min(max(-x, np.float32(-87)), np.float32(88))
        return np.float32(1) / (np.float32(1) + np.exp(y))

    @njit(parallel=True, fastmath={"contract", "nsz", "arcp"}, error_model="numpy")
    def paint(masks, down, down_weights, across, across_weights, scores, threshold):
        count, mask_height, _ = masks.shape
        height, width = len(down), len(across)
        owners = np.empty((height, width), np.int16)
        bands = (height + ROWS - 1) // ROWS
        areas = np.zeros((bands, 3, count), np.int64)
        for band in prange(bands):
            y0 = band * ROWS
            rows = min(ROWS, height - y0)
            stretched = np.empty((mask_height, COLUMNS), np.float32)
            best = np.empty((ROWS, COLUMNS), np.float32)
            owner = np.empty((ROWS, COLUMNS), np.int32)
            inside = np.empty((ROWS, COLUMNS), np.int32)
            low, high = np.empty(count, np.float32), np.empty(count, np.float32)
            listed, rival = np.empty(count, np.int32), np.empty(count, np.int32)
            top, bottom = down[y0], down[y0 + rows - 1] + 3
            for x0 in range(0, width, COLUMNS):
                columns = min(COLUMNS, width - x0)
                left, right = across[x0], across[x0 + columns - 1] + 3
                sure = np.float32(-1)
                for k in range(count):
                    least, most = np.float32(1e30), np.float32(-1e30)
                    for row in range(top, bottom):
                        for column in range(left, right):
                            least = min(least, masks[k, row, column])
                            most = max(most, masks[k, row, column])
                    slack = np.float32(1e-6) * max(abs(least), abs(most))
                    low[k], high[k] = sigmoid(least - slack), sigmoid(most + slack)
                    sure = max(sure, scores[k] * low[k])
                number = rivals = partly = 0
                for k in range(count):
                    can_win = scores[k] * high[k] * np.float32(1.000001) >= sure
                    all_on = low[k] >= threshold + 1e-6
                    part = not all_on and high[k] >= threshold - 1e-6
                    rivals += can_win
                    partly += part
                    if can_win or part:
                        listed[number], rival[number] = k, can_win
                        number += 1
                    elif all_on:
                        areas[band, 0, k] += rows * columns
                if rivals == 1 and partly == 0:
                    k = listed[0]
                    on = low[k] >= threshold
                    areas[band, 1, k] += rows * columns
                    if on:
                        areas[band, 0, k] += rows * columns
                        areas[band, 2, k] += rows * columns
                    owners[y0 : y0 + rows, x0 : x0 + columns] = k if on else -1
                    continue
                best[:] = -1
                for i in range(number):
                    k = listed[i]
                    for row in range(top, bottom):
                        for x in range(columns):
                            at, w = across[x0 + x], across_weights[x0 + x]
                            stretched[row - top, x] = (
                                w[0] * masks[k, row, at]
                                + w[1] * masks[k, row, at + 1]
                                + w[2] * masks[k, row, at + 2]
                            )
                    for row in range(rows):
                        at, w = down[y0 + row] - top, down_weights[y0 + row]
                        area = 0
                        for x in range(columns):
                            p = sigmoid(
                                w[0] * stretched[at, x]
                                + w[1] * stretched[at + 1, x]
                                + w[2] * stretched[at + 2, x]
                            )
                            on = np.int32(p >= threshold)
                            area += on
                            value = scores[k] * p
                            wins = (rival[i] != 0) & (value > best[row, x])
                            best[row, x] = value if wins else best[row, x]
                            owner[row, x] = k if wins else owner[row, x]
                            inside[row, x] = on if wins else inside[row, x]
                        areas[band, 0, k] += area
                for row in range(rows):
                    for x in range(columns):
                        k = owner[row, x]
                        areas[band, 1, k] += 1
                        areas[band, 2, k] += inside[row, x]
                        owners[y0 + row, x0 + x] = k if inside[row, x] else -1
        return owners, areas.sum(0)

    return paint


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    spec = spec_of("panoptic")
    _, geometry = Processor(spec).preprocess(np.zeros((1080, 1920, 3), np.uint8))
    classes, masks = made_up_outputs(spec, geometry)
    chosen = choose_queries(classes[0], 0.8)
    kept = np.ascontiguousarray(masks[0][chosen.queries])
    way = pixels.way_to_image(spec.mask_size, geometry)
    tables = [
        np.ascontiguousarray(table[name])
        for table in (way.down, way.across)
        for name in ("first", "weights")
    ]
    start = time.perf_counter()
    import numba

    imported = time.perf_counter() - start
    numba.set_num_threads(min(usable_cores(), numba.config.NUMBA_NUM_THREADS))
    paint = compiled()
    start = time.perf_counter()
    owners, areas = paint(kept, *tables, chosen.scores, np.float32(0.5))
    first_call = time.perf_counter() - start
    mine = pixels.paint_queries(kept, way, chosen.scores, 0.5)
    case = {
        "section": "kernel", "case": "panoptic 1920x1080", "import_s": imported,
        "first_call_s": first_call,
        "agreement": float((owners == mine[0]).mean()) * float((areas == mine[1]).all()),
        "rows": time_jobs(
            {
                "numba": lambda: paint(kept, *tables, chosen.scores, np.float32(0.5)),
                "C": lambda: pixels.paint_queries(kept, way, chosen.scores, 0.5),
            },
            options.rounds, 0,
        ),
    }  # fmt: skip
    show(case)
    console.print(f"numba: import {imported:.1f} s, first call {first_call:.1f} s")
    if options.json:
        data = {"schema": 1, "kind": "kernels", "environment": environment(), "cases": [case]}
        options.json.write_text(json.dumps(data, indent=1) + "\n")


if __name__ == "__main__":
    main()
