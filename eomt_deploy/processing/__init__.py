"""Images to tensors and tensors to results, exactly as the official code does it.

Pure functions on arrays, and :class:`Processor`, which picks the ones of a model's task.
"""

from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.processor import Processor

__all__ = ["Geometry", "Processor"]
