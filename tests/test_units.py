from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.errors import UsageError
from eomt_deploy.units import counted, parse_bytes


@given(st.integers(0, 10**6), st.sampled_from([("", 0), ("KiB", 10), ("MiB", 20), ("GiB", 30)]))
def test_sizes(number, unit):
    assert parse_bytes(f"{number}{unit[0]}") == number << unit[1]


@pytest.mark.parametrize("text", ["", "4 GB", "-1", "1.5GiB", "GiB", "4gib", "٣"])
def test_sizes_that_are_none(text):
    with pytest.raises(UsageError, match="4GiB"):
        parse_bytes(text)


def test_counted():
    assert [counted(number, "image") for number in (0, 1, 2)] == ["0 images", "1 image", "2 images"]
