"""Write `docs/commands.md`, the reference of the command line, and its pictures.

    python docs/commands.py

Everything is made from what the commands print with `--help`, so nothing has to be kept up to date
by hand; a test compares the page with the commands.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

import typer
from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text
from typer.cli import get_docs_for_click

from eomt_deploy.cli.app import app
from eomt_deploy.cli.examples import TITLE, UNWRAPPED

HERE = Path(__file__).parent
PICTURES = {
    "help": ["--help"],
    "export": ["export", "--help"],
    "predict": ["predict", "--help"],
    "bench": ["bench", "--help"],
}
COLUMNS = 90
PROGRAM = "import sys; sys.argv[0] = 'eomt-deploy'; from eomt_deploy.cli import main; main()"

# A picture must not load fonts from the network: the viewer's own monospaced font is used.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def page() -> str:
    """The reference of all commands, in Markdown."""
    command = typer.main.get_command(app)
    context = typer.Context(command, info_name="eomt-deploy")
    text = get_docs_for_click(obj=command, ctx=context, name="eomt-deploy", title="Command line")
    for name in PICTURES:
        heading = "# Command line\n" if name == "help" else f"## `eomt-deploy {name}`\n"
        alternative = " ".join(["eomt-deploy", *PICTURES[name]])
        picture = f"\n![Output of {alternative}](pictures/{name}.svg)\n"
        text = text.replace(heading, heading + picture, 1)
    return re.sub(f"{UNWRAPPED}{TITLE}(.*?)\n\n", _as_code, text, flags=re.DOTALL)


def _as_code(match: re.Match[str]) -> str:
    code = "\n".join(line.removeprefix("  ") for line in match[1].splitlines())
    return f"**Examples**:\n\n```bash\n{code}\n```\n\n"


def picture(name: str) -> str:
    """The output of a command as SVG."""
    arguments = PICTURES[name]
    environment = os.environ | {"COLUMNS": str(COLUMNS), "TERMINAL_WIDTH": str(COLUMNS)}
    printed = subprocess.run(
        [sys.executable, "-c", PROGRAM, *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = " ".join(["eomt-deploy", *arguments])
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(f"$ {command}", highlight=False)
    console.print(Text(printed.strip("\n")))
    return console.export_svg(
        title=command, theme=MONOKAI, code_format=FORMAT, unique_id=f"terminal-{name}"
    )


if __name__ == "__main__":
    (HERE / "commands.md").write_text(page(), encoding="utf-8")
    for name in PICTURES:
        (HERE / "pictures" / f"{name}.svg").write_text(picture(name), encoding="utf-8")
