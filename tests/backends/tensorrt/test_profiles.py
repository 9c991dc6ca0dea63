from __future__ import annotations

from pathlib import Path

import pytest

from eomt_deploy import catalog
from eomt_deploy.errors import UsageError
from eomt_deploy.sidecar import TARGETS


@pytest.mark.parametrize("profile", catalog.build_profiles().values(), ids=lambda p: p.name)
def test_every_profile_is_a_build_that_may_be_asked(profile):
    config = profile.config(Path("m.onnx"), Path("m.engine"))
    assert config.target == profile.target
    assert profile.name.startswith(profile.target)
    assert profile.summary


def test_profiles_of_running_and_of_building_are_told_apart():
    assert {p.target for p in catalog.build_profiles().values()} == set(TARGETS)
    assert not set(catalog.build_profiles()) & set(catalog.engine_profiles())
    files = {path.stem for path in catalog.folder("engines").glob("*.toml")}
    assert files == set(catalog.build_profiles()) | set(catalog.engine_profiles())


def test_unknown_profile_names_those_that_exist():
    with pytest.raises(UsageError, match="tensorrt-portable"):
        catalog.find_build_profile("tensorrt-portabel")
