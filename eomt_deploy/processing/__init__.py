"""Pre- and post-processing, with the same results as the official code.

Pure functions on arrays, and :class:`Processor`, which calls those of a model's task.
"""

from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.processor import Processor

__all__ = ["Geometry", "Processor"]
