"""The certificate of an ExecuTorch program, which is in its description."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eomt_deploy.backends.executorch.config import ExecuTorchConfig
from eomt_deploy.backends.executorch.engine import read_description
from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import ModelFileError
from eomt_deploy.sidecar import sidecar_path, write_sidecar


class ExecuTorchFile:
    """A ``.pte`` file, see :class:`eomt_deploy.backends.building.BuiltFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._facts = read_description(path)
        self.onnx, self.onnx_sha256 = self._facts.onnx, self._facts.onnx_sha256
        self.certificate = self._facts.certificate

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return self._path, sidecar_path(self._path)

    def check_place(self, arithmetic: str | None) -> None:
        """A description always has a place for a certificate."""

    def save(self, certificate: Certificate) -> None:
        """Write a certificate into the description.

        Raises:
            ModelFileError: the program was rebuilt meanwhile.
        """
        now = read_description(self._path)
        if now.plan_sha256 != self._facts.plan_sha256:
            raise ModelFileError(
                f"{self._path} has changed during the comparison.", fix="Repeat it."
            )
        write_sidecar(self._path, replace(now, certificate=certificate))

    def rebuild(self, onnx: Path, output: Path, arithmetic: str | None) -> ExecuTorchConfig:
        """The configuration that builds another model with the same settings, without a check."""
        settings = self._facts.settings
        return ExecuTorchConfig(
            onnx,
            output,
            check=False,
            partitioner=settings["partitioner"],
            soc=settings.get("soc"),
            fixed_batch=self._facts.batch[0],
        )
