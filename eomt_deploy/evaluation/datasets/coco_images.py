"""Search for the image of a file name in a COCO JSON file, as written by different tools."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.dataset_files import FileIndex, words


def spellings(file_name: str) -> Iterator[str]:
    """A file name and its possible other spellings.

    Windows tools write ``val\\a.jpg`` and ``C:\\data\\a.jpg``; Label Studio writes
    ``/data/local-files/?d=images/a%20b.jpg`` or a URL, both percent-encoded.
    """
    yield file_name
    slashes = file_name.replace("\\", "/")
    yield slashes
    yield unquote(slashes)
    try:
        address = urlsplit(slashes)
    except ValueError:  # brackets that are not valid in a URL
        return
    yield from parse_qs(address.query).get("d", [])
    yield unquote(address.path)


class ImageFinder:
    """Search for the images that a JSON file lists.

    Args:
        index: index of all files.
        document: name of the JSON file.
        documents: names of all JSON files of its kind.
        split: requested split, if any.
        label_folders: folders of label images, which are not searched.
    """

    def __init__(
        self,
        index: FileIndex,
        document: str,
        documents: Collection[str],
        split: str | None,
        label_folders: Collection[str] = (),
    ) -> None:
        self._index = index
        self._home = PurePosixPath(document).parent
        others = {PurePosixPath(other).parent for other in documents}
        # A folder with its own JSON file has its own images.
        self._foreign = [o for o in others if o != self._home and o not in self._home.parents]
        self._labels = label_folders
        self._splits = {split} if split else words(document) - set(self._home.parts)
        self._meant: dict[str, str] = {}

    def find(self, file_name: str) -> str:
        """Name of the image in the index.

        Raises:
            DatasetError: no image matches, several match equally well, or the image already
                belongs to another file name.
        """
        best: list[str] = []
        for spelling in spellings(file_name):
            if best := self._best(PurePosixPath(spelling)):
                break
        if len(best) != 1:
            what = "is missing" if not best else f"is ambiguous: {', '.join(best)}"
            raise DatasetError(
                f"The image {file_name} {what} in {self._index.origin}.",
                fix="Also pass the folder or zip file with the images: --data A --data B.",
            )
        other = self._meant.setdefault(best[0], file_name)
        if other != file_name:
            raise DatasetError(
                f"The images {other} and {file_name} would both be {best[0]} in "
                f"{self._index.origin}.",
                fix="Also pass the folder or zip file with all images: --data A --data B.",
            )
        return best[0]

    def _best(self, wanted: PurePosixPath) -> list[str]:
        found = [
            name
            for name in self._index.by_file_name.get(wanted.name, [])
            if not any(name.startswith(f"{folder}/") for folder in self._labels)
            and not any(PurePosixPath(name).is_relative_to(f) for f in self._foreign if f.parts)
        ]
        ranks = {name: self._rank(PurePosixPath(name), wanted) for name in found}
        return [name for name in found if ranks[name] == max(ranks.values())]

    def _rank(self, path: PurePosixPath, wanted: PurePosixPath) -> tuple[int, bool, int, bool]:
        """Rank by the number of equal parts at the end, then by the split and by the distance."""
        end = _shared(path.parts[::-1], wanted.parts[::-1])
        of_split = bool(self._splits & set(path.parent.parts))
        return end, of_split, _shared(path.parts, self._home.parts), "images" in path.parts


def _shared(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """Number of equal parts at the start."""
    same = [a == b for a, b in zip(first, second, strict=False)]
    return same.index(False) if False in same else len(same)
