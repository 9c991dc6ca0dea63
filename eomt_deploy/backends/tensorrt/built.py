"""The certificate of an engine, which is in its sidecar."""

from __future__ import annotations

from pathlib import Path

from eomt_deploy.backends.building import FileWithSidecar
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.sidecar import known_target


class TensorRtFile(FileWithSidecar):
    """An ``.engine`` file, see :class:`eomt_deploy.backends.building.BuiltFile`."""

    def rebuild(self, onnx: Path, output: Path, arithmetic: str | None) -> TensorRtConfig:
        """The configuration that builds another model with the same settings, without a check."""
        facts, settings = self.sidecar, self.sidecar.settings
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
