from __future__ import annotations

import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.batch import plan
from eomt_deploy.batch.places import Place
from eomt_deploy.errors import OutputError

NAMES = st.lists(st.binary(min_size=1, max_size=12).map(os.fsdecode))


@given(names=NAMES, size=st.integers(1, 5))
def test_the_shards_together_are_the_list(tmp_path_factory, names, size):
    place = Place.of(str(tmp_path_factory.mktemp("plan")))
    made = plan.make_plan(names, size, place)
    found = [plan.paths_of(place, shard) for shard in range(made.shards)]
    assert [name for group in found for name in group] == names
    assert all(len(group) == size for group in found[:-1])
    assert made == plan.make_plan(iter(names), size, None)
    assert made.images == len(names)


def test_a_long_plan_has_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(plan, "SHARDS_PER_FILE", 3)
    place = Place.of(str(tmp_path))
    names = [f"/{i}" for i in range(17)]
    made = plan.make_plan(names, 2, place)
    assert place.names("plan") == ["000000.parquet", "000001.parquet", "000002.parquet"]
    assert [name for s in range(made.shards) for name in plan.paths_of(place, s)] == names


def test_the_order_and_the_borders_of_names_change_the_hash():
    lists = (["a", "b"], ["b", "a"], ["ab"], ["a", "b", ""])
    assert len({plan.make_plan(names, 9, None).sha256 for names in lists}) == len(lists)


@pytest.mark.parametrize("content", [None, b"", b"PAR1"])
def test_a_damaged_plan_is_an_error(tmp_path, content):
    place = Place.of(str(tmp_path))
    plan.make_plan(["a"], 1, place)
    path = tmp_path / "plan/000000.parquet"
    path.unlink() if content is None else path.write_bytes(content)
    with pytest.raises(OutputError, match=r"000000\.parquet cannot be read"):
        plan.paths_of(place, 0)
