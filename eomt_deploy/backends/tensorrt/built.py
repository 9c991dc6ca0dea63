"""The certificate of an engine, which is in its sidecar."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import ModelFileError
from eomt_deploy.sidecar import known_target, read_sidecar, sidecar_path, write_sidecar


class TensorRtFile:
    """An ``.engine`` file, see :class:`eomt_deploy.backends.building.BuiltFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._sidecar = read_sidecar(path)
        self.onnx = self._sidecar.onnx
        self.onnx_sha256 = self._sidecar.onnx_sha256
        self.certificate = self._sidecar.certificate

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return self._path, sidecar_path(self._path)

    def check_place(self, arithmetic: str | None) -> None:
        """A sidecar always has a place for a certificate."""

    def save(self, certificate: Certificate) -> None:
        """Write a certificate into the sidecar.

        Raises:
            ModelFileError: the engine was rebuilt meanwhile.
        """
        now = read_sidecar(self._path)
        if now.plan_sha256 != self._sidecar.plan_sha256:
            raise ModelFileError(
                f"{self._path} has changed during the comparison.", fix="Repeat it."
            )
        write_sidecar(self._path, replace(now, certificate=certificate))

    def rebuild(self, onnx: Path, output: Path, arithmetic: str | None) -> TensorRtConfig:
        """The configuration that builds another model with the same settings, without a check."""
        facts, settings = self._sidecar, self._sidecar.settings
        target = known_target(facts)
        level, workspace = (
            int(text) if (text := settings.get(name, "")).isdecimal() and len(text) < 19 else None
            for name in ("optimization_level", "workspace_bytes")
        )
        capabilities = [c for c in facts.compute_capabilities if not c.endswith("+")]
        return TensorRtConfig(
            onnx,
            output,
            target=target,
            check=False,
            batch=facts.batch if facts.spec.batch is None else None,
            compute_capabilities=tuple(capabilities) if target == "tensorrt-rtx" else (),
            hardware_compatibility=facts.hardware_compatibility,  # type: ignore[arg-type]
            tf32=settings.get("tf32") == "yes",
            optimization_level=level,
            workspace=workspace,
        )
