"""A network of a suite as an exported model file, in the engine of a backend."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path

from eomt_deploy.backends.backend import Builder, load
from eomt_deploy.backends.building import no_progress
from eomt_deploy.backends.engine import Outputs
from eomt_deploy.backends.profiles import make_config
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.benchmarking.measure.gpu_clock import network_job
from eomt_deploy.benchmarking.paper.runtimes import Case, Images, Running
from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.files import temporary_cache
from eomt_deploy.spec import METADATA_KEY

OPSET = 20
"""First opset with Gelu, and with the mode names of GridSample that current backends expect."""


def export(case: Case) -> Path:
    """Export the network, with its description as metadata, to ONNX; an existing file is reused."""
    path = case.folder / f"{case.row.name.replace(' ', '-')}.{len(case.images)}.onnx"
    if path.exists():
        return path
    import torch

    from eomt_deploy.benchmarking.paper.torch_runtimes import torch_type

    network = case.build("written", "cpu").to(torch_type(case.precision))
    logger = logging.getLogger("torch.onnx")
    logger.setLevel(logging.ERROR)  # it warns about every missing optional package
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # deprecations inside torch
        program = torch.onnx.export(
            network,
            (torch.from_numpy(case.images),),
            dynamo=True,
            optimize=True,
            opset_version=OPSET,
            input_names=[INPUT],
            output_names=list(OUTPUTS),
            verbose=False,
        )
    assert program is not None  # dynamo=True always returns it
    program.model.metadata_props[METADATA_KEY] = case.spec.to_json()
    program.save(path, external_data=True)
    return path


def open_exported(case: Case, *, backend: str) -> Running:
    """Export the network, build an engine if the backend needs one, and open it."""
    return _Exported(case, backend)


class _Exported(Running):
    def __init__(self, case: Case, name: str) -> None:
        backend = BACKENDS[name]
        path = export(case)
        # Files that the engine compiles are not needed after the measurement.
        with temporary_cache(case.folder / "cache"):
            if backend.build is not None and ".onnx" not in backend.suffixes:
                path = self._built(path, name, backend.build)
            self._engine = backend.load()(path, device=case.device, threads=case.threads)
        self.device = self._engine.device
        self._images = case.images
        self._job = network_job(self._engine, case.images)
        self.timer = self._job.timer
        self.network()
        remarks = list(self._engine.remarks)
        if hasattr(self._engine, "cuda_graph"):
            remarks.append(f"CUDA graph {self._engine.cuda_graph}")
        self.remark = " ".join(remarks)

    def _built(self, model: Path, name: str, builder: Builder) -> Path:
        path = model.with_suffix(f".{name}{builder.suffix}")
        if not path.exists():
            load(builder.run)(make_config(name, model, path, {"check": False}), no_progress)
        return path

    def network(self) -> None:
        self._job.work()

    def copies(self) -> None:
        self._engine.run(self._images)

    def run(self, images: Images) -> Outputs:
        return self._engine.run(images)

    def close(self) -> None:
        self._engine.close()
