# ruff: noqa: E402
from __future__ import annotations

import atexit
import gc
import os

# Must be set before NumPy and PyTorch are imported. On the small tensors of tiny networks, several
# threads are slower than one, above all with several test workers.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Imports and traces create millions of small objects; with the default thresholds, a fifth of the
# time is spent on searching them for garbage. At the end, nothing needs to be searched.
gc.set_threshold(100_000, 50, 50)
atexit.register(gc.freeze)

from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
import tiny
import torch
from filelock import FileLock
from PIL import Image
from traces import VARIABLE, Traces, folder_for_this_code

from eomt_deploy.cli import main
from eomt_deploy.exporting import ExportConfig, export, graph
from eomt_deploy.exporting.calibration import observe
from eomt_deploy.exporting.config import QUANTIZED
from eomt_deploy.exporting.conversion import describe
from eomt_deploy.exporting.lowering import Lowering, lower
from eomt_deploy.exporting.quantization import insert_qdq, quantize_layers
from eomt_deploy.network.folds import fold
from eomt_deploy.spec import Task

SHARED = Path(__file__).parents[2] / "shared"


# Modules with the longest tests, or with a fixture that takes long, the longest first.
LONG = (
    "batch/", "backends/web/", "cli/test_batch.py", "test_wheel.py",
    "benchmarking/paper/test_suite.py",
    "test_privacy.py", "serving/test_robust.py", "test_docs.py", "test_camvid.py",
    "backends/aotinductor/", "examples/", "checkpoints/test_resuming.py",
    "exporting/test_export.py", "hostile/test_processes.py", "cli/test_predict.py",
    "benchmarking/test_gpu_paper.py", "cli/test_predict_video.py", "cli/test_cli.py",
)  # fmt: skip


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Start with the long modules, so that no worker is left alone with one of them.

    Each worker starts with an equal part of the list: the long modules are distributed to the heads
    of these parts.
    """
    workers = int(os.environ.get("PYTEST_XDIST_WORKER_COUNT", "1"))
    parts: list[list[pytest.Item]] = [[] for _ in range(workers)]
    folder = f"{Path(__file__).parent.as_posix()}/"
    groups: dict[str | None, list[pytest.Item]] = {name: [] for name in (*LONG, None)}
    for item in items:
        path = item.path.as_posix().removeprefix(folder)
        groups[next((name for name in LONG if path.startswith(name)), None)].append(item)
    others = groups.pop(None)
    for number, group in enumerate(groups.values()):
        # 0 1 2 2 1 0 0 1 2 …: the worker with the longest one gets the shortest of the next ones.
        place = number % (2 * workers)
        parts[min(place, 2 * workers - 1 - place)] += group
    left = len(items)
    for number, part in enumerate(parts):
        share = left // (workers - number)  # as `--dist worksteal` divides the list
        missing = max(0, share - len(part))
        part += others[:missing]
        del others[:missing]
        left -= len(part)
    items[:] = [item for part in parts for item in part]


def pytest_collection_finish() -> None:
    gc.freeze()  # modules are never garbage


@pytest.fixture(scope="session")
def shared() -> Path:
    """The development data beside the repository; tests that need it are marked `shared_data`."""
    if not SHARED.is_dir():
        pytest.skip(f"the development data are missing ({SHARED})")
    return SHARED


@pytest.fixture(scope="session")
def common(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that all workers of a run share."""
    folder = tmp_path_factory.getbasetemp()
    return folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder


@pytest.fixture(scope="session", autouse=True)
def traces(common: Path, pytestconfig: pytest.Config) -> Iterator[None]:
    """Trace each network structure only once, and keep the graphs for the next test run."""
    cache = getattr(pytestconfig, "cache", None)
    folder = folder_for_this_code(cache.mkdir("traces") if cache else common)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("torch.onnx.export", Traces(folder, torch.onnx.export))
        patch.setenv(VARIABLE, str(folder))
        patch.setenv("EOMT_DEPLOY_TEST_COMMON", str(common))
        yield


@pytest.fixture(scope="session")
def files(common: Path) -> tiny.Files:
    """A tiny official checkpoint and its class list."""
    folder = common / "tiny"
    with FileLock(common / "tiny.lock"):
        if folder.exists():
            return tiny.files(folder)
        folder.mkdir()
        return tiny.write(folder)


@pytest.fixture(scope="session")
def exported(common: Path, files: tiny.Files) -> Callable[[Task], Path]:
    """The tiny checkpoint as ONNX, exported once per task."""
    folder = common / "exported"
    folder.mkdir(exist_ok=True)

    def get(task: Task) -> Path:
        path = folder / f"{task}.onnx"
        with FileLock(common / f"{task}.lock"):
            if not path.exists():
                export(
                    ExportConfig(
                        str(files.checkpoint), path, task=task, classes=files.classes,
                        allow_stuff=task == "instance",
                    )
                )  # fmt: skip
        return path

    return get


@pytest.fixture(scope="session")
def traced() -> Callable[[int | None], ir.Model]:
    """The tiny network's annotated FP32 graph, traced once per batch size."""
    graphs: dict[int | None, ir.Model] = {}

    def get(batch: int | None = None) -> ir.Model:
        if batch not in graphs:
            network = fold(tiny.network())
            graphs[batch] = describe(
                graph.trace(network, tiny.spec(batch=batch)), tiny.spec(batch=batch)
            )
        return graphs[batch].clone()

    return get


@pytest.fixture(scope="session")
def lowered(traced: Callable[[int | None], ir.Model]) -> Callable[..., ir.Model]:
    """The tiny network's graph in any precision and batch size."""
    network = fold(tiny.network())
    activations = observe(network, [tiny.images()])

    def get(precision: str, batch: int | None = None, task: Task = "panoptic") -> ir.Model:
        model = traced(batch)
        if precision in QUANTIZED:
            layers = quantize_layers(network, activations, precision, "minmax")
            model = insert_qdq(model, layers, layers)
        if precision != "fp32":
            model = lower(model, Lowering(precision))
        return describe(model, tiny.spec(task, precision, batch))

    return get


@pytest.fixture(scope="session")
def image_path() -> Path:
    """Path of a photograph, 400x600 pixels."""
    import eomt_deploy

    return Path(eomt_deploy.__file__).parent / "assets" / "coffee.jpg"


@pytest.fixture
def gradient() -> np.ndarray:
    """A small colour image without symmetry, uint8 [37, 53, 3]."""
    y, x = np.mgrid[:37, :53]
    return np.stack([y * 6, x * 4, (x * y) % 256], axis=-1).astype(np.uint8)


@pytest.fixture
def picture(tmp_path: Path, gradient: np.ndarray) -> Path:
    path = tmp_path / "gradient.png"
    Image.fromarray(gradient).save(path)
    return path


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Run the command line in this process: exit code, stdout, stderr."""

    def run(*arguments: object) -> tuple[int, str, str]:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        code = stop.value.code
        return int(code or 0), captured.out, captured.err

    return run
