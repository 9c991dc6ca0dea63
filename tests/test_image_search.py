"""The image files of a folder, and the note about the other files."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from eomt_deploy.decoding import IMAGE_SUFFIXES
from eomt_deploy.errors import ImageError
from eomt_deploy.image_search import find_images, search_images


def fill(root: Path, *names: str) -> Path:
    """Create files with these names; their content is not read."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    return root


def names(root: Path) -> list[str]:
    return [path.relative_to(root).as_posix() for path in find_images([root])]


def test_find_images_in_folders_and_globs(tmp_path, gradient):
    names = ("b.png", "a.jpg", "deep/er/c.webp")
    for name in names:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(gradient).save(path)
    (tmp_path / "readme.txt").write_text("no picture")
    found = find_images([tmp_path])
    assert [p.relative_to(tmp_path).as_posix() for p in found] == ["a.jpg", "b.png", names[2]]
    assert find_images([tmp_path / "a.jpg", tmp_path / "*.jpg"]) == [tmp_path / "a.jpg"]


def test_a_list_of_images(tmp_path, gradient, monkeypatch):
    (tmp_path / "photos").mkdir()
    for name in ("b.png", "a.png", "photos/c.jpg", "photos/d.jpg"):
        Image.fromarray(gradient).save(tmp_path / name)
    listed = tmp_path / "photos" / "list.txt"
    listed.write_text("\ufeffc.jpg\n\n# all of the others\n" + str(tmp_path / "*.png") + "\n")
    names = [path.name for path in find_images([f"@{listed}", tmp_path / "photos"])]
    assert names == ["c.jpg", "a.png", "b.png", "d.jpg"]
    monkeypatch.chdir(tmp_path)
    listed.write_text("photos\nb.png")
    assert [p.name for p in find_images(["@photos/list.txt"])] == ["c.jpg", "d.jpg", "b.png"]
    (tmp_path / "@strange.png").write_bytes((tmp_path / "b.png").read_bytes())
    assert find_images(["@strange.png"])[0].name == "@strange.png"
    for content, words in (
        ("", "is empty"), ("# nothing", "is empty"), ("gone.jpg", "There is no image or folder"),
    ):  # fmt: skip
        listed.write_text(content)
        with pytest.raises(ImageError, match=words):
            find_images([f"@{listed}"])
    listed.write_bytes(b"\xff\xfe\x00")
    for wrong in (f"@{listed}", "@nowhere.txt", "@photos"):
        with pytest.raises(ImageError, match="cannot be read"):
            find_images([wrong])


def test_find_images_finds_nothing(tmp_path):
    for source, word in (
        (tmp_path, "contains no image"),
        (tmp_path / "*.png", "No file matches"),
        (tmp_path / "none", "no image or folder"),
    ):
        with pytest.raises(ImageError, match=word):
            find_images([source])


def test_one_image_named_twice_is_one_image(picture):
    assert len(find_images([picture, picture.parent / "." / picture.name, picture.parent])) == 1


def test_every_suffix_that_a_single_file_may_have(tmp_path):
    wanted = sorted(f"image{suffix}" for suffix in IMAGE_SUFFIXES)
    assert {"image.jpe", "image.jfif", "image.avif", "image.gif"} < set(wanted)
    fill(tmp_path, *wanted, "UPPER.JPG")
    assert names(tmp_path) == sorted([*wanted, "UPPER.JPG"])


def test_what_is_left_out_is_counted(tmp_path):
    fill(tmp_path, "a.jpg", "notes.txt", "deep/more.TXT", "README", "._a.jpg",
         ".ipynb_checkpoints/a.jpg", ".ipynb_checkpoints/deep/b.jpg", "__MACOSX/._a.jpg",
         "@eaDir/a.jpg", "b.heic")  # fmt: skip
    found = search_images([tmp_path])
    assert [path.name for path in found.paths] == ["a.jpg"]
    assert found.note == "left out 9 files: 5 hidden, 2 .txt, 1 .heic, 1 without a suffix"
    # A folder that is passed twice, or partly, is not counted twice.
    assert len(search_images([tmp_path, tmp_path, tmp_path / "deep/../deep/.."]).left_out) == 9


def test_nothing_left_out_is_no_line(tmp_path):
    fill(tmp_path, "a.jpg")
    assert search_images([tmp_path]).note == ""
    assert search_images([tmp_path / "a.jpg"]).note == ""
    fill(tmp_path, "b.txt")
    assert search_images([tmp_path]).note == "left out 1 file: 1 .txt"


def test_what_the_user_names_is_taken(tmp_path):
    fill(tmp_path, ".hidden.jpg", "frame.dat", ".folder/a.jpg", "a.txt", "b.jpg")
    assert names(tmp_path / ".folder") == ["a.jpg"]
    found = search_images([tmp_path, tmp_path / ".hidden.jpg", tmp_path / "frame.dat"])
    assert {path.name for path in found.paths} == {".hidden.jpg", "frame.dat", "b.jpg"}
    assert found.note == "left out 2 files: 1 .txt, 1 hidden"


def test_links_to_folders_are_followed_and_loops_end(tmp_path):
    real = fill(tmp_path / "real", "a.jpg", "deep/b.jpg")
    root = fill(tmp_path / "root", "c.jpg")
    (root / "linked").symlink_to(real)
    (root / "again").symlink_to(root)
    (real / "deep/up").symlink_to(real)
    (real / "deep/root").symlink_to(root)
    assert names(root) == ["c.jpg", "linked/a.jpg", "linked/deep/b.jpg"]
    assert names(tmp_path) == ["real/a.jpg", "real/deep/b.jpg", "root/c.jpg"]  # its real name


def test_a_link_into_a_hidden_folder_is_meant(tmp_path):
    """As data version control stores its files."""
    fill(tmp_path, ".store/ab/a.jpg", ".store/cd.jpg")
    (tmp_path / "images").symlink_to(tmp_path / ".store/ab")
    (tmp_path / "b.jpg").symlink_to(tmp_path / ".store/cd.jpg")
    assert names(tmp_path) == ["b.jpg", "images/a.jpg"]


def test_broken_links_and_odd_files_are_counted(tmp_path):
    fill(tmp_path, "a.jpg")
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    (tmp_path / "self.jpg").symlink_to(tmp_path / "self.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = search_images([tmp_path])
    assert len(found.paths) == 1
    assert found.note == "left out 3 files: 2 broken links, 1 special file"


def test_a_folder_that_cannot_be_read_is_said(tmp_path, monkeypatch):
    fill(tmp_path, "a.jpg", "locked/b.jpg")
    real = os.scandir

    def scandir(folder):
        if Path(folder).name == "locked":
            raise PermissionError(13, "Permission denied")
        return real(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    assert search_images([tmp_path]).note == "left out 1 file: 1 unreadable folder"


def test_a_folder_named_like_an_image(tmp_path):
    fill(tmp_path, "a.jpg/b.png")
    assert names(tmp_path) == ["a.jpg/b.png"]


def test_globs(tmp_path):
    fill(tmp_path, "a.jpg", "b.dat", "folder/c.jpg", ".d.jpg")
    found = search_images([str(tmp_path / "*")])
    assert [path.name for path in found.paths] == ["a.jpg", "b.dat"]
    assert found.note == "left out 1 file: 1 folder"
    with pytest.raises(ImageError, match="No file matches"):
        find_images([str(tmp_path / "a\0*")])
    with pytest.raises(ImageError, match="no image or folder"):
        find_images([str(tmp_path / "a\0b.jpg")])


def test_why_a_folder_holds_no_image(tmp_path):
    fill(tmp_path, "a.heic", "b.heic")
    with pytest.raises(ImageError, match=r"contains no image(.|\n)*left out 2 files: 2 \.heic"):
        find_images([tmp_path])


def test_predict_ends_with_what_was_left_out(cli, exported, tmp_path, gradient):
    folder = fill(tmp_path / "in", "a.txt", "._a.png")
    Image.fromarray(gradient).save(folder / "a.png")
    code, _, err = cli("predict", exported("semantic"), folder, "-o", tmp_path / "out")
    assert code == 0
    last = err.strip().splitlines()[-1]
    assert last.startswith("left out 2 files: ")
    (folder / "b.jpg").write_bytes(b"broken")
    code, _, err = cli("predict", exported("semantic"), folder, "-o", tmp_path / "out")
    assert code == 2
    assert "left out 2 files: " in err
    code, _, err = cli("predict", exported("semantic"), folder / "a.png", "-o", tmp_path / "o.png",
                       "--max-pixels", 1960)  # fmt: skip
    assert code == 2
    assert "more than the limit of 1,960" in err
