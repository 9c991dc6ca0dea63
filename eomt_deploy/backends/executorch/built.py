"""The certificate of an ExecuTorch program, which is in its description."""

from __future__ import annotations

from pathlib import Path

from eomt_deploy.backends.building import FileWithSidecar
from eomt_deploy.backends.executorch.config import ExecuTorchConfig
from eomt_deploy.backends.executorch.engine import read_description


class ExecuTorchFile(FileWithSidecar):
    """A ``.pte`` file, see :class:`eomt_deploy.backends.building.BuiltFile`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path, read_description)

    def rebuild(self, onnx: Path, output: Path, arithmetic: str | None) -> ExecuTorchConfig:
        """The configuration that builds another model with the same settings, without a check."""
        settings = self.sidecar.settings
        return ExecuTorchConfig(
            onnx,
            output,
            check=False,
            partitioner=settings["partitioner"],
            soc=settings.get("soc"),
            fixed_batch=self.sidecar.batch[0],
        )
