from __future__ import annotations

import sys
import warnings

import pytest

from eomt_deploy.backends.tensorrt import library, timing_cache
from eomt_deploy.devices import Gpu
from eomt_deploy.errors import UsageError

pytestmark = pytest.mark.filterwarnings("ignore:.*[Tt]iming cache")


@pytest.fixture
def settings():
    """TensorRT-RTX still has these calls; they have no effect, but read and write like TensorRT."""
    module = library.load("tensorrt-rtx")
    builder = module.Builder(library.logger("tensorrt-rtx"))
    yield builder.create_builder_config()
    del builder


def attach(settings, path):
    with library.captured_log("tensorrt-rtx") as lines, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        said = timing_cache.attach(settings, path, lines)
        assert lines == []
    return said


def test_cache_is_made_kept_and_replaced_when_damaged(settings, tmp_path, monkeypatch):
    monkeypatch.setattr(timing_cache, "cache_folder", lambda: tmp_path / "new")
    path = tmp_path / "new" / "x.timing"
    assert attach(settings, path) == []
    assert timing_cache.save(settings, path) == []
    assert path.stat().st_size > 100
    assert [p.name for p in path.parent.iterdir()] == ["x.timing"]
    path.write_bytes(b"garbage")
    (said,) = attach(settings, path)
    assert str(path) in said
    assert "damaged" in said
    assert timing_cache.save(settings, path) == []
    assert path.stat().st_size > 100


def test_file_of_the_users_own_is_not_replaced(settings, tmp_path):
    path = tmp_path / "precious.onnx"
    path.write_bytes(b"not a cache")
    with pytest.raises(UsageError, match="not a timing cache"):
        attach(settings, path)
    assert path.read_bytes() == b"not a cache"


def test_cache_that_cannot_be_read_or_written_is_a_warning(settings, tmp_path):
    (said,) = attach(settings, tmp_path)  # a folder
    assert "cannot be read" in said
    (said,) = timing_cache.save(settings, tmp_path)
    assert "not saved" in said


def test_default_file_is_in_the_users_cache_and_of_one_machine(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    path = timing_cache.default_file("11.4.0.106", Gpu("NVIDIA RTX 4090/D", "8.9", None))
    assert path.name == "tensorrt-11.4.0.106-NVIDIA-RTX-4090-D.timing"
    if sys.platform == "linux":
        assert path.parent == tmp_path / "eomt-deploy"
