"""The image that a COCO JSON means by a file name, whatever tool wrote the name."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import PurePosixPath
from urllib.parse import parse_qs, unquote, urlsplit

from eomt_deploy.errors import DatasetError
from eomt_deploy.evaluation.dataset_files import FileIndex, words


def spellings(file_name: str) -> Iterator[str]:
    """A file name as it stands, and what it may mean.

    Windows tools write ``val\\a.jpg`` and ``C:\\data\\a.jpg``; Label Studio writes
    ``/data/local-files/?d=images/a%20b.jpg`` or an address, each of them quoted.
    """
    yield file_name
    slashes = file_name.replace("\\", "/")
    yield slashes
    yield unquote(slashes)
    try:
        address = urlsplit(slashes)
    except ValueError:  # brackets that are not those of an address
        return
    yield from parse_qs(address.query).get("d", [])
    yield unquote(address.path)


class ImageFinder:
    """Finds the images that a label document names.

    Args:
        index: all files.
        document: name of the JSON.
        documents: all JSON files of its kind.
        split: that was asked for.
        label_folders: folders of label images, which hold no images.
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
        # A folder with labels of its own holds images of its own.
        self._foreign = [o for o in others if o != self._home and o not in self._home.parents]
        self._labels = label_folders
        self._splits = {split} if split else words(document) - set(self._home.parts)
        self._meant: dict[str, str] = {}

    def find(self, file_name: str) -> str:
        """Name of the image in the index.

        Raises:
            DatasetError: there is none, several fit equally well, or it is another one's, too.
        """
        best: list[str] = []
        for spelling in spellings(file_name):
            if best := self._best(PurePosixPath(spelling)):
                break
        if len(best) != 1:
            what = "is missing" if not best else f"is ambiguous: {', '.join(best)}"
            raise DatasetError(
                f"The image {file_name} {what} in {self._index.origin}.",
                fix="Pass the folder or zip with the images, too: --data A --data B.",
            )
        other = self._meant.setdefault(best[0], file_name)
        if other != file_name:
            raise DatasetError(
                f"The images {other} and {file_name} would both be {best[0]} in "
                f"{self._index.origin}.",
                fix="Pass the folder or zip with all images, too: --data A --data B.",
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
        """The more of the end is the same, the better; then the split, and how near it lies."""
        end = _shared(path.parts[::-1], wanted.parts[::-1])
        of_split = bool(self._splits & set(path.parent.parts))
        return end, of_split, _shared(path.parts, self._home.parts), "images" in path.parts


def _shared(first: tuple[str, ...], second: tuple[str, ...]) -> int:
    """How many parts are the same from the start."""
    same = [a == b for a, b in zip(first, second, strict=False)]
    return same.index(False) if False in same else len(same)
