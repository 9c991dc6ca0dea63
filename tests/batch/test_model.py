"""Images that end or block the process that decodes them."""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace

import pytest
from batch_helpers import write_images
from ray import cloudpickle

from eomt_deploy.batch import model
from eomt_deploy.batch.model import ShardRun
from eomt_deploy.batch.places import Place
from eomt_deploy.batch.rows import Pictures
from eomt_deploy.batch.settings import read_spec
from eomt_deploy.batch.workers import Decoder, Helpers, Job, Ready
from eomt_deploy.errors import ImageError

pytestmark = [pytest.mark.external, pytest.mark.usefixtures("ray_here")]


class FragileDecoder(Decoder):
    """The real decoder, but two names of files end or block its process, as a damaged library can.

    No image is known that does this to Pillow.
    """

    def prepare(self, paths, on_device):
        for path in paths:
            if "kills" in path:
                os.kill(os.getpid(), signal.SIGKILL)
            if "blocks" in path:
                time.sleep(600)
        return super().prepare(paths, on_device)


@pytest.fixture
def shard(exported, tmp_path):
    """A shard whose decoder is fragile; the network is not needed."""
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    job = Job(
        model=exported("panoptic"), model_sha256="", opening={"threads": 1},
        spec=read_spec(exported("panoptic")), thresholds=None, max_pixels=None,
        place=Place.of(str(tmp_path)), pictures=Pictures(), run="", shard_size=8, decoders=1,
        writers=1,
    )  # fmt: skip
    yield ShardRun(
        SimpleNamespace(job=job, decoders=Helpers(FragileDecoder, 1, job), on_device=False), 0
    )
    cloudpickle.unregister_pickle_by_value(sys.modules[__name__])


@pytest.mark.parametrize(
    ("fault", "reason"), [("kills", "its process ended"), ("blocks", "it took more than")]
)
def test_one_image_takes_no_other_with_it(shard, tmp_path, monkeypatch, fault, reason):
    """The images of the same call have results, and the next ones, too."""
    paths = write_images(tmp_path / "images", 8)
    paths[2] = paths[2].rename(paths[2].with_name(f"{fault}.png"))
    start = time.monotonic()
    shard._model.decoders.start("prepare", [str(paths[0])], False).get(seconds=120)
    if fault == "blocks":
        # A process that starts again must not count as blocked, also on a busy machine.
        monkeypatch.setattr(model, "DECODE_SECONDS", 4 * (time.monotonic() - start))
    prepared = list(shard._prepared([str(path) for path in paths]))
    assert [one.index for one in prepared] == list(range(8))
    assert [one.path for one in prepared] == [str(path) for path in paths]
    for one in prepared:
        if fault in one.path:
            assert isinstance(one.ready, ImageError)
            assert reason in str(one.ready)
            assert one.ready.fix
        else:
            assert isinstance(one.ready, Ready)
