from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.batch import shards
from eomt_deploy.batch.places import Place
from eomt_deploy.batch.rows import Done, Pictures, make_row, picture_name, shown
from eomt_deploy.batch.shards import ShardFacts, Totals
from eomt_deploy.errors import ImageError, OutputError


def write(place, shard, images=2, run="r"):
    rows = [
        make_row(
            Done(i, f"/x/{i}.png", ImageError("damaged", fix="repair it")),
            shard, place, Pictures(), None,
        )
        for i in range(images)
    ]  # fmt: skip
    facts = shards.facts_of(shard, run, rows, 1.5)
    shards.write(place, facts, rows)
    return facts


@pytest.mark.parametrize("scheme", ["", "local://"])
def test_only_complete_shards_of_the_same_run_count(tmp_path, scheme):
    place = Place.of(f"{scheme}{tmp_path}")
    facts = {shard: write(place, shard) for shard in (0, 5)}
    write(place, 1, run="other")
    whole = (tmp_path / shards.name_of(0)).read_bytes()
    (tmp_path / shards.name_of(2)).write_bytes(whole)  # the name of another shard
    (tmp_path / shards.name_of(3)).write_bytes(whole[:-1])
    (tmp_path / shards.name_of(4)).write_bytes(b"")
    names = [f"shards/{name}" for name in place.names("shards")]
    assert len(names) == 6
    found = shards.finished(place, "r", names)
    assert (found.shards, found.images, found.failed) == ({0, 5}, 4, 4)
    assert facts[0].errors == {"E203": 2}
    for _ in range(2):  # Ray can report a shard twice
        found.add(facts[0])
    assert found.images == 4


@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_any_text_is_no_facts_or_facts(text):
    with suppress(ValueError):
        ShardFacts.from_json(text)


def totals(*numbers, images=2):
    found = Totals()
    for number in numbers:
        found.add(ShardFacts(number, "r", images))
    return found


@pytest.mark.parametrize(
    ("found", "present"),
    [
        (totals(0, 1), (0, 1)),
        (totals(0, 1, 2), (0, 1)),
        (totals(0, 1), (0, 1, 2)),
        (totals(0, 1, 3), (0, 1, 3)),
        (totals(0, 1, 2, images=1), (0, 1, 2)),
    ],
)
def test_an_incomplete_output_is_an_error(found, present):
    with pytest.raises(OutputError, match="of 3 shards"):
        shards.check_complete(found, map(shards.name_of, present), 3, 6)
    shards.check_complete(totals(0, 1, 2), map(shards.name_of, range(3)), 3, 6)


def test_names_of_pictures_are_safe_and_unique():
    error = ImageError("x", fix="y")
    paths = ["/a/..png", "/a/b/c d;&.jpg", "s3://b/x/été.png?v=1", "/a/" + "n" * 300, "\udcff.png"]
    names = [picture_name(Done(i, path, error), 7) for i, path in enumerate(paths)]
    assert len(set(names)) == len(names)
    for name in names:
        assert name.startswith("000000007/0000000")
        assert name.count("/") == 1
        assert len(name) < 120
        assert name.encode("ascii")


def test_paths_are_stored_without_secrets_and_as_valid_text():
    assert shown("https://me:secret@host/a.png?token=1") == "https://host/a.png"
    assert shown("/x/\udcff.png") == "/x/\\udcff.png"
