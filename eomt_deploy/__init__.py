"""eomt-deploy: run EoMT, the Encoder-only Mask Transformer, in production.

>>> from eomt_deploy import Segmenter
>>> result = Segmenter("model.onnx").predict("street.jpg")  # doctest: +SKIP
>>> result.overlay().save("overlay.png")  # doctest: +SKIP
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from eomt_deploy.privacy import switch_off

__version__ = "0.1.0"

switch_off()  # before any other library is imported

# Names are imported on first use, so that `import eomt_deploy` is fast.
_EXPORTS = {
    "EomtDeployError": "eomt_deploy.errors",
    "ModelSpec": "eomt_deploy.spec",
    "OverlayStyle": "eomt_deploy.drawing",
    "Processor": "eomt_deploy.processing",
    "Segment": "eomt_deploy.result",
    "Segmentation": "eomt_deploy.result",
    "Segmenter": "eomt_deploy.segmenter",
    "load_image": "eomt_deploy.sources",
    "open_engine": "eomt_deploy.backends",
    "open_video": "eomt_deploy.video",
}

__all__ = [
    "EomtDeployError",
    "ModelSpec",
    "OverlayStyle",
    "Processor",
    "Segment",
    "Segmentation",
    "Segmenter",
    "__version__",
    "load_image",
    "open_engine",
    "open_video",
]

if TYPE_CHECKING:
    from eomt_deploy.backends import open_engine
    from eomt_deploy.drawing import OverlayStyle
    from eomt_deploy.errors import EomtDeployError
    from eomt_deploy.processing import Processor
    from eomt_deploy.result import Segmentation
    from eomt_deploy.segmenter import Segmenter
    from eomt_deploy.segments import Segment
    from eomt_deploy.sources import load_image
    from eomt_deploy.spec import ModelSpec
    from eomt_deploy.video import open_video


def __getattr__(name: str) -> Any:
    if name in _EXPORTS:
        return getattr(import_module(_EXPORTS[name]), name)
    raise AttributeError(f"module 'eomt_deploy' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
