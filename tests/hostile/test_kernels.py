"""The native kernels under AddressSanitizer and UndefinedBehaviorSanitizer."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from eomt_deploy.processing import compiled

pytestmark = pytest.mark.external

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SEED, COUNT = 0, 150
FLAGS = ("-shared", "-fPIC", "-g1", "-O1", "-fno-omit-frame-pointer", "-ffp-contract=off",
         "-fno-math-errno", "-fsanitize=address,undefined,float-cast-overflow",
         "-fno-sanitize-recover=all")  # fmt: skip


@pytest.fixture(scope="module")
def sanitized(common: Path) -> tuple[Path, str]:
    """The kernels with all checks, and the library of the sanitizer, which must be loaded first."""
    compiler = shutil.which("gcc") or shutil.which("clang")
    if compiler is None or sys.platform != "linux":
        pytest.skip("there is no gcc or clang here, or this is not Linux")
    library = common / "pixels-sanitized.so"
    sources = sorted(str(path) for path in compiled.FOLDER.glob("*.c"))
    said = ""
    with FileLock(common / "pixels-sanitized.lock"):
        if not library.exists():
            made = subprocess.run(
                [compiler, *FLAGS, *sources, "-o", str(library), "-lm"],
                capture_output=True, text=True,
            )  # fmt: skip
            said = made.stderr[-300:]
    name = "libasan.so" if "gcc" in compiler else "libclang_rt.asan-x86_64.so"
    found = subprocess.run([compiler, f"-print-file-name={name}"], capture_output=True, text=True)
    runtime = found.stdout.strip()
    if not library.exists() or not Path(runtime).is_file():
        pytest.skip(f"{compiler} has no sanitizers: {said}")
    return library, runtime


def run_driver(sanitized: tuple[Path, str], *arguments: object) -> subprocess.CompletedProcess[str]:
    _, runtime = sanitized
    environment = os.environ | {
        "LD_PRELOAD": runtime, "PYTHONMALLOC": "malloc", "PYTHONPATH": str(ROOT),
        "ASAN_OPTIONS": "detect_leaks=0:abort_on_error=0:allocator_may_return_null=1",
        "UBSAN_OPTIONS": "print_stacktrace=1",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *map(str, arguments)], cwd=ROOT, env=environment,
        capture_output=True, text=True, timeout=500,
    )  # fmt: skip


def test_no_kernel_leaves_its_arrays_or_the_language(sanitized):
    """NaN and infinity, one pixel, many windows, more queries and classes than any model has."""
    done = run_driver(sanitized, HERE / "kernel_driver.py", sanitized[0], SEED, COUNT)
    last = "\n".join(done.stdout.splitlines()[-2:])
    assert done.returncode == 0, f"{last}\n{done.stderr[:3000]}"
    assert done.stdout.endswith("all done\n")


def test_the_c_library_does_not_either(sanitized):
    """Damaged descriptions, images of any size, and results of all tasks."""
    done = run_driver(sanitized, HERE / "library_driver.py", sanitized[0], SEED, COUNT)
    last = "\n".join(done.stdout.splitlines()[-2:])
    assert done.returncode == 0, f"{last}\n{done.stderr[:3000]}"
    assert done.stdout.endswith("all done\n")


def test_the_sanitizer_sees_a_fault(sanitized):
    """Check that the sanitizers detect an error at all."""
    overrun = (
        "import ctypes, sys, numpy as np\n"
        "library = ctypes.CDLL(sys.argv[1])\n"
        "owners = np.zeros((2, 2), np.int16); labels = np.zeros((2, 2), np.uint8)\n"
        "table = np.zeros(2, np.int32); boxes = np.zeros((1, 4), np.int32)\n"
        "at = lambda a: ctypes.c_void_p(a.ctypes.data)\n"
        "ends = at(labels), at(boxes)\n"
        "library.label_segments(at(owners), 4000, 2, at(table), 1, 1, 0, 4000, 0, *ends)\n"
    )
    done = run_driver(sanitized, "-c", overrun, sanitized[0])
    assert done.returncode != 0
    assert "AddressSanitizer" in done.stderr
