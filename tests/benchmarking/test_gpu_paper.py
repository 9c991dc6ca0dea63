"""The program for a machine with only PyTorch, NumPy and the repository."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from eomt_deploy.benchmarking.paper.report import read_reports
from eomt_deploy.benchmarking.paper.suite_file import find_suite

PROGRAM = Path(__file__).parents[2] / "benchmarks" / "gpu_paper.py"
ABSENT = (
    "PIL", "cv2", "cuda", "hotcoco", "huggingface_hub", "matplotlib", "ml_dtypes", "onnx",
    "onnx_ir", "onnxruntime", "onnxscript", "platformdirs", "pynvml", "rich", "safetensors",
    "tensorrt_rtx", "typer",
)  # fmt: skip
BARE = """
import importlib.machinery, runpy, sys
from dataclasses import replace
absent, finder = set(sys.argv.pop(1).split()), importlib.machinery.PathFinder
real = finder.find_spec
finder.find_spec = classmethod(
    lambda cls, name, path=None, target=None:
        None if name.split(".")[0] in absent else real(name, path, target)
)
sys.argv.pop(0)
import gpu_paper
from eomt_deploy.benchmarking.machine import roofline
from eomt_deploy.benchmarking.measure.clock import Rounds
from eomt_deploy.benchmarking.paper import ladder, suite_config
from eomt_deploy.benchmarking.paper.baseline import adapter, mask_decoder, pixel_decoder
adapter.STAGES, adapter.EXTRA_EXTRACTORS, pixel_decoder.LAYERS, mask_decoder.LAYERS = 1, 0, 1, 3
pixel_decoder.HIDDEN = mask_decoder.HIDDEN = 256
ladder.BACKBONES["tiny"] = replace(ladder.BACKBONES["tiny"], depth=2, blocks=1)
suite_config.CPU_ROUNDS = Rounds(4, 1)
roofline.CPU_SIDES, roofline.SECONDS = (64,), 0.01
gpu_paper.SECTIONS = (
    gpu_paper.Section("table1", ("torch-eager",), "fp16", 60, ("step 0", "step 4", "step 5")),
    gpu_paper.Section("table3", ("torch-eager",), "fp16", 60, ("giant 5",)),
)
gpu_paper.main()
"""


def test_runs_on_a_bare_machine(tmp_path):
    target = tmp_path / "out.json"
    command = [
        sys.executable, "-c", BARE, " ".join(ABSENT), "gpu_paper.py", "--device", "cpu",
        "--backbone", "tiny", "--size", "64", "--output", str(target),
    ]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, cwd=PROGRAM.parent)
    assert done.returncode == 0, done.stderr
    facts = json.loads(target.read_text())["sections"][0]
    assert facts["kind"] == "facts"
    assert facts["peaks"]["fp32"]["tflops"] > 0
    first, second = read_reports(target)
    assert {m.row for m in first.measurements} == {"step 0", "step 4", "step 5"}
    assert second.suite.name == "table3"
    assert list(tmp_path.iterdir()) == [target]


def test_sections_name_rows_that_exist():
    sys.path.insert(0, str(PROGRAM.parent))
    try:
        import gpu_paper
    finally:
        sys.path.remove(str(PROGRAM.parent))
    for section in gpu_paper.SECTIONS:
        assert find_suite(section.suite).select(section.rows)
