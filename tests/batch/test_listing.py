from __future__ import annotations

import os

import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

from eomt_deploy.batch.listing import Listing
from eomt_deploy.errors import ImageError, UsageError


@pytest.fixture
def folder(tmp_path):
    """Three images, and files that are not images."""
    for name in ("b.png", "a b%20.png", "deep/c.png", "__MACOSX/d.png"):
        path = tmp_path / "in" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    (tmp_path / "in/notes.txt").write_text("no image")
    return tmp_path / "in"


def names(listing, folder):
    return [os.path.relpath(path.partition("://")[2] or path, folder) for path in listing]


def test_a_folder_is_sorted_and_complete(folder):
    listing = Listing([str(folder), str(folder / "b.png")])
    assert names(listing, folder) == ["a b%20.png", "b.png", "deep/c.png"]
    assert list(listing) == list(listing)
    assert listing.notes == ["left out 2 files: 1 .txt, 1 hidden"]


def test_another_file_system_gives_the_same_images(folder):
    """`local` is a file system of fsspec that pyarrow does not know."""
    listing = Listing([f"local://{folder}"])
    assert names(listing, folder) == ["a b%20.png", "b.png", "deep/c.png"]
    assert all(path.startswith(f"local://{folder}/") for path in listing)
    assert listing.notes == [f"left out 2 files of local://{folder}"]
    assert list(Listing([f"local://{folder}/b.png"])) == [f"local://{folder}/b.png"]


def test_a_file_uri_is_a_path(folder):
    assert list(Listing([f"file://{folder}/a%20b%2520.png"])) == [str(folder / "a b%20.png")]


def test_a_list_file(folder, tmp_path):
    (tmp_path / "list.txt").write_text("# two\nin/b.png\nin/deep\n")
    assert names(Listing([f"@{tmp_path}/list.txt"]), folder) == ["b.png", "deep/c.png"]


def test_a_table_keeps_its_order_and_duplicates(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    paths = ["z.jpg", "/a.jpg", "z.jpg", "s3://bucket/k y.jpg", "https://host/x.png"]
    parquet.write_table(pa.table({"other": range(5), "path": paths}), "t.parquet", row_group_size=2)
    here = str(tmp_path / "z.jpg")
    expected = [here, "/a.jpg", here, *paths[3:]]
    assert list(Listing(["t.parquet"])) == expected
    assert list(Listing([f"local://{tmp_path}/t.parquet"])) == expected


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"file": ["a"]}, "has no column 'path'; its columns are file"),
        ({"path": ["a", None]}, "contains None, which is not a path"),
        ({"path": [3]}, "contains 3, which is not a path"),
    ],
)
def test_a_table_without_paths_is_refused(tmp_path, columns, message):
    parquet.write_table(pa.table(columns), tmp_path / "t.parquet")
    with pytest.raises(ImageError, match=message):
        list(Listing([str(tmp_path / "t.parquet")]))


def test_what_is_not_a_table_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_text("text")
    for name in ("t.parquet", "missing.parquet"):
        with pytest.raises(ImageError, match=r"cannot be read as a Parquet table"):
            list(Listing([str(tmp_path / name)]))


@pytest.mark.parametrize("source", ["{}/missing", "local://{}/missing", "local://{}"])
def test_a_source_without_images_is_refused(tmp_path, source):
    with pytest.raises(ImageError, match=r"no image|cannot be listed"):
        list(Listing([source.format(tmp_path)]))


def test_an_unknown_storage_is_refused():
    with pytest.raises(UsageError, match=r"storage nowhere://bucket/ cannot be used"):
        list(Listing(["nowhere://bucket/key"]))
