"""`docs/support.json` has every cell of the support matrix, and `docs/support.md` shows them."""

from __future__ import annotations

import pytest
from support_page import support

from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.support.matrix import STATUSES, cells

DATA = support.read()


@pytest.mark.parametrize("name", BACKENDS)
def test_every_cell_is_in_the_data(name):
    """`python docs/support.py --write NAME` adds a new backend, without a name a new precision."""
    found = support.findings(DATA[name])
    assert [finding.cell for finding in found] == cells([name])
    for finding in found:
        possible = finding.cell.precision in BACKENDS[name].precisions
        assert (finding.status == "not possible") == (not possible)
        assert finding.status in STATUSES
        assert finding.status != "failed", finding
        assert (finding.error is not None) == (finding.status == "verified")
        assert bool(finding.reason) == (finding.status != "verified")


def test_the_page_shows_the_data():
    """`python docs/support.py --page` writes it again."""
    assert list(DATA) == list(BACKENDS)
    assert support.PAGE.read_text(encoding="utf-8") == support.text(DATA)
    assert support.DATA.read_text(encoding="utf-8") == support.dumped(DATA)


def test_the_reasons_are_below_the_table():
    cell = cells(["openvino"])[0]
    shown = {
        support.shown(support.Finding(cell, status, "" if status == "verified" else "why", 0.1))
        for status in STATUSES
    }
    assert len(shown) == len(STATUSES)
    found = [support.Finding(cell, "failed", "it differs"), support.Finding(cell, "verified")]
    assert list(support.reasons(found)) == ["- FP32 (DINOv2): failed: it differs.", ""]
