from __future__ import annotations

import subprocess
import sys

import eomt_deploy

HEAVY = (
    "torch",
    "onnx",
    "onnxruntime",
    "openvino",
    "tensorrt",
    "tensorrt_rtx",
    "cuda",
    "cv2",
    "PIL",
    "numpy",
    "transformers",
)


def run_python(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return done.stdout


def test_import_is_light():
    code = f"import sys, eomt_deploy; print([m for m in {HEAVY} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_run_time_side_never_imports_torch():
    code = (
        "import sys, eomt_deploy.segmenter, eomt_deploy.cli, eomt_deploy.benchmarking\n"
        "import eomt_deploy.backends.onnxruntime.engine, eomt_deploy.model_file\n"
        "print([m for m in ('torch', 'transformers', 'onnx') if m in sys.modules])"
    )
    assert run_python(code).strip() == "[]"


def test_command_line_starts_fast():
    unneeded = ("IPython", "matplotlib", "pandas", "pyarrow", "ray", "eomt_deploy.batch.driver")
    code = f"import sys, eomt_deploy.cli.app; print([m for m in {unneeded} if m in sys.modules])"
    assert run_python(code).strip() == "[]"


def test_public_names_resolve():
    for name in eomt_deploy.__all__:
        assert getattr(eomt_deploy, name) is not None
    assert set(eomt_deploy.__all__) <= set(dir(eomt_deploy))
