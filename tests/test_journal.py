from __future__ import annotations

import json
import os

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.journal import JOURNAL_NAME, Journal, JournalWriter, read_records

PLACES = ("labels", "summary.json")


def write(folder, *names, settings=None):
    with JournalWriter(folder, settings or {"model": "m"}) as journal:
        for name in names:
            journal.announce([name])
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            journal.record([name], source=name)


def test_finished_files_are_ours_until_somebody_changes_them(tmp_path):
    write(tmp_path, "labels/a.png", "labels/deep/b.png", "summary.json")
    journal = Journal.read(tmp_path, PLACES)
    assert journal.settings == {"model": "m"}
    assert journal.foreign_files() == []
    (tmp_path / "labels/a.png").write_text("corrected by hand")
    (tmp_path / "labels/new.png").write_text("new")
    (tmp_path / "notes.txt").write_text("not where results go")
    assert journal.foreign_files() == ["labels/a.png", "labels/new.png"]
    with pytest.raises(OutputError, match=r"contains 2 files that .*labels/a\.png"):
        journal.check_foreign()
    assert journal.remove_files() == 2
    left = {p.relative_to(tmp_path).as_posix() for p in tmp_path.rglob("*") if p.is_file()}
    assert left == {"labels/a.png", "labels/new.png", "notes.txt", JOURNAL_NAME}
    assert not (tmp_path / "labels/deep").exists()


def test_same_size_and_another_time_is_another_file(tmp_path):
    write(tmp_path, "labels/a.png")
    os.utime(tmp_path / "labels/a.png", ns=(1, 1))
    assert Journal.read(tmp_path, PLACES).foreign_files() == ["labels/a.png"]


def test_a_copy_of_results_in_another_folder_is_not_ours(tmp_path):
    write(tmp_path / "out", "labels/a.png")
    (tmp_path / "data/labels").mkdir(parents=True)
    (tmp_path / "out/labels/a.png").rename(tmp_path / "data/labels/a.png")
    assert Journal.read(tmp_path / "data", PLACES).foreign_files() == ["labels/a.png"]


def test_what_was_being_written_when_a_run_was_killed_is_ours(tmp_path):
    journal = JournalWriter(tmp_path, {})
    journal.announce(["labels/a.png"])
    (tmp_path / "labels").mkdir()
    (tmp_path / "labels/a.png").write_text("half")
    with (tmp_path / JOURNAL_NAME).open("a") as file:
        file.write('{"writing": ["labels/b')  # then the power failed
    found = Journal.read(tmp_path, PLACES)
    assert found.unfinished == {"labels/a.png"}
    assert found.foreign_files() == []
    found.remove_files()
    assert not (tmp_path / "labels").exists()


@pytest.mark.parametrize(
    "name",
    ["../precious.txt", "/etc/passwd", "labels/../../precious.txt", "precious.txt", "", "\0"],
)
@pytest.mark.parametrize("key", ["files", "writing"])
def test_a_hostile_journal_reaches_no_other_file(tmp_path, name, key):
    folder = tmp_path / "out"
    folder.mkdir()
    for place in (tmp_path, folder):
        (place / "precious.txt").write_text("precious")
    status = (folder / "precious.txt").stat()
    names = {name: [status.st_size, status.st_mtime_ns]} if key == "files" else [name]
    lines = [{"schema": 1, "settings": {}}, {key: names}]
    (folder / JOURNAL_NAME).write_text("".join(json.dumps(line) + "\n" for line in lines))
    Journal.read(folder, PLACES).remove_files()
    assert (folder / "precious.txt").exists()
    assert (tmp_path / "precious.txt").exists()


@given(content=st.binary(max_size=300))
def test_any_bytes_are_read_as_a_journal_without_an_error(tmp_path_factory, content):
    folder = tmp_path_factory.mktemp("journal")
    (folder / JOURNAL_NAME).write_bytes(content)
    Journal.read(folder, PLACES).foreign_files()


RECORDS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from(["files", "writing", "settings", "schema", "labels/a"]), inner, max_size=3
    ),
)  # fmt: skip


@given(first=RECORDS, second=RECORDS)
def test_any_json_is_read_as_a_journal_without_an_error(tmp_path_factory, first, second):
    folder = tmp_path_factory.mktemp("journal")
    header = {"schema": 1, "settings": {}, **(first if isinstance(first, dict) else {})}
    lines = [json.dumps(header), json.dumps(second)]
    (folder / JOURNAL_NAME).write_text("\n".join(lines) + "\n")
    Journal.read(folder, PLACES).remove_files()


def test_another_run_is_not_continued(tmp_path):
    write(tmp_path, "labels/a.png", settings={"model": "m", "score": 0.5})
    journal = Journal.read(tmp_path, PLACES)
    journal.check_settings({"model": "m", "score": 0.5})
    with pytest.raises(UsageError, match=r"score was 0\.5, now it is 0\.6"):
        journal.check_settings({"model": "m", "score": 0.6})
    Journal.read(tmp_path / "none", PLACES).check_settings({"model": "m"})


def test_records_that_stay_valid_are_kept(tmp_path):
    write(tmp_path, "labels/a.png", "labels/b.png")
    kept = (r for r in read_records(tmp_path) if r.get("source") == "labels/b.png")
    JournalWriter(tmp_path, {}, kept).close()
    assert [r.get("source") for r in read_records(tmp_path)] == [None, "labels/b.png"]
