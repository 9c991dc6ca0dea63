from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from coco_documents import labelled_images

from eomt_deploy import Segmenter


@pytest.fixture(scope="session")
def labels(exported, tmp_path_factory) -> tuple[Segmenter, dict[str, Any], Path]:
    """A model, labels that partly match its predictions, and the images by name, e.g. `a.jpg`."""
    return labelled_images(exported("instance"), tmp_path_factory.mktemp("images"))
