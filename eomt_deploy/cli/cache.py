"""`eomt-deploy cache`: show and clear the cache folder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Annotated

import typer
from rich.table import Table

from eomt_deploy import cache
from eomt_deploy.cli.console import print_json, say, stdout, warn
from eomt_deploy.cli.examples import epilog
from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.files import cache_folder

app = typer.Typer(no_args_is_help=True, help="Show or clear the cache folder.", name="cache")


@app.command(epilog=epilog("cache show"), short_help="Show what is in the cache folder.")
def show(
    json: Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")] = False,
) -> None:
    """Show the number, the size and the last use of the files in the cache folder.

    The cache of huggingface_hub is a separate folder; it is neither shown nor cleared.
    """
    folder, limit = cache_folder(), cache.size_limit()
    entries, unknown = cache.entries(), cache.unknown_files()
    if json:
        print_json(
            {
                "folder": str(folder),
                "limit_bytes": limit,
                "bytes": _size(entries),
                "entries": [asdict(entry) | {"path": str(entry.path)} for entry in entries],
                "unknown": [str(path) for path in unknown],
            }
        )
        return
    say(f"{folder}: at most {_megabytes(limit)} besides downloads (set {cache.LIMIT})")
    table = Table("what", "files", "size", "last used", box=None)
    for name in ("files", "size"):
        next(c for c in table.columns if c.header == name).justify = "right"
    for kind in sorted({entry.kind for entry in entries}):
        own = [entry for entry in entries if entry.kind == kind]
        used = datetime.fromtimestamp(max(entry.used for entry in own))
        table.add_row(
            kind,
            str(sum(entry.files for entry in own)),
            _megabytes(_size(own)),
            f"{used:%Y-%m-%d %H:%M}",
        )
    if entries:
        stdout.print(table)
    else:
        say("It is empty.")
    if unknown:
        say(f"{len(unknown)} other files or links are not from eomt-deploy, e.g. {unknown[0]}")


@app.command(epilog=epilog("cache clear"), short_help="Remove the files in the cache folder.")
def clear(
    all_: Annotated[
        bool, typer.Option("--all", help="Also remove downloaded checkpoints.")
    ] = False,
) -> None:
    """Remove the files in the cache folder without asking for confirmation.

    Downloaded checkpoints stay unless --all is given. Files that eomt-deploy did not write, and
    the targets of links, always stay.
    """
    folder = cache_folder()
    if folder.is_symlink():
        raise UsageError(
            f"{folder} is a link to {folder.resolve()}; clear removes nothing through links.",
            fix=f"Remove the files there yourself, or the link: rm {folder}",
        )
    removed, kept, failed = [], [], []
    for entry in cache.entries():
        if entry.kind == cache.DOWNLOAD_KIND and not all_:
            kept.append(entry)
            continue
        try:
            cache.remove(entry)
            removed.append(entry)
        except OSError as error:
            failed.append(entry)
            warn(f"{entry.path} cannot be removed: {error.strerror}.")
    say(f"removed {_summary(removed)} from {folder}")
    if kept:
        say(f"kept {_summary(kept)}; --all removes them, too")
    if unknown := cache.unknown_files():
        say(f"left {len(unknown)} other files or links that are not from eomt-deploy")
    if failed:
        raise OutputError(
            f"{len(failed)} of {len(failed) + len(removed)} entries cannot be removed.",
            fix=f"Change the permissions of {folder}; see the warnings above.",
        )


def _summary(entries: Sequence[cache.Entry]) -> str:
    if not entries:
        return "nothing"
    kinds = sorted({entry.kind for entry in entries})
    files = sum(entry.files for entry in entries)
    return f"{files} files ({_megabytes(_size(entries))}: {', '.join(kinds)})"


def _size(entries: Sequence[cache.Entry]) -> int:
    return sum(entry.bytes for entry in entries)


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f} MB"
