from __future__ import annotations

from pathlib import Path

import pytest

from eomt_deploy import data_files
from eomt_deploy.backends.profiles import build_profiles, find_build_profile
from eomt_deploy.backends.tensorrt.config import TensorRtConfig
from eomt_deploy.errors import UsageError
from eomt_deploy.precision import PRECISIONS
from eomt_deploy.sidecar import TARGETS


@pytest.mark.parametrize("profile", build_profiles().values(), ids=lambda p: p.name)
def test_every_profile_is_a_valid_build(profile):
    config = profile.config(Path("m.onnx"), Path("m.engine"))
    assert isinstance(config, TensorRtConfig)
    assert config.target == profile.target
    assert profile.precision in (None, *PRECISIONS)
    assert config.expect_precision == profile.precision
    assert profile.summary


def test_every_file_is_a_profile_and_each_target_has_one():
    assert {p.target for p in build_profiles().values()} == set(TARGETS)
    assert {path.stem for path in data_files.entries("engines")} == set(build_profiles())


def test_unknown_profile_lists_the_known_ones():
    with pytest.raises(UsageError, match="tensorrt-portable"):
        find_build_profile("tensorrt-portabel")
