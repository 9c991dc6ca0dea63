"""Check that every local link in the documentation leads to an existing file and heading.

    python docs/check_links.py

Reads all Markdown files of the repository and `llms.txt`. Web addresses are not opened.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
LINK = re.compile(r"!?\[[^\]\n]*\]\(<?([^)\s>]+)>?\)")
CODE = re.compile(r"^( *)(```|~~~).*?^\1\2", re.MULTILINE | re.DOTALL)
INLINE_CODE = re.compile(r"`[^`\n]+`")
HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
SKIPPED = ("_build", "node_modules")


def pages(root: Path = ROOT) -> list[Path]:
    """The files whose links are checked."""
    found = (*root.glob("*.md"), root / "llms.txt")
    for folder in ("docs", "examples", "benchmarks", ".github"):
        found += tuple((root / folder).rglob("*.md"))
    return sorted(p for p in found if p.is_file() and not set(p.parts) & set(SKIPPED))


def anchors(text: str) -> set[str]:
    """The anchors of the headings, as GitHub and MyST create them."""
    found = set()
    for heading in HEADING.findall(CODE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).replace("`", "")
        found.add(re.sub(r"[^\w\- ]", "", plain.strip().lower()).replace(" ", "-"))
    return found


def broken_links(page: Path) -> Iterator[str]:
    """Yield one message for each broken link."""
    text = page.read_text(encoding="utf-8")
    for target in LINK.findall(INLINE_CODE.sub("", CODE.sub("", text))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        file = (page.parent / path) if path else page
        if not file.exists():
            yield f"{page}: {target}: {path} does not exist"
        elif anchor and anchor not in anchors(file.read_text(encoding="utf-8")):
            yield f"{page}: {target}: {file.name} has no heading {anchor}"


if __name__ == "__main__":
    problems = [problem for page in pages() for problem in broken_links(page)]
    print("\n".join(problems) or f"{len(pages())} files: all local links are valid")
    sys.exit(bool(problems))
