"""One Ray for all tests of this folder: its start takes several seconds, and it is never idle."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import pytest

os.environ.setdefault("RAY_worker_niceness", "0")  # else other tests on the machine come first

pytest.importorskip("ray", reason="batch jobs need the extra batch")

from eomt_deploy.batch.cluster import running_ray


@pytest.fixture(scope="package")
def ray_here() -> Iterator[Any]:
    with running_ray(None, slots=4, gpus=0) as ray:
        yield ray
