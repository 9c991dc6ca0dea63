"""Pictures of the command line for `docs/commands.md`, drawn from what the commands print.

    python docs/pictures/terminal.py

Writes `help.svg`, `export.svg`, `predict.svg` and `bench.svg`.
"""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys
from pathlib import Path

from rich._export_format import CONSOLE_SVG_FORMAT
from rich.console import Console
from rich.terminal_theme import MONOKAI
from rich.text import Text

HERE = Path(__file__).parent
PICTURES = {
    "help": ["--help"],
    "export": ["export", "--help"],
    "predict": ["predict", "--help"],
    "bench": ["bench", "--help"],
}
COLUMNS = 100

# A picture must not load fonts from the network: the viewer's own monospaced font is used.
FORMAT = re.sub(r"@font-face \{\{.*?\}\}\n", "", CONSOLE_SVG_FORMAT, flags=re.DOTALL)


def draw(name: str) -> str:
    """The output of a command as SVG."""
    arguments = PICTURES[name]
    environment = os.environ | {
        "FORCE_COLOR": "1",
        "COLUMNS": str(COLUMNS),
        "TERMINAL_WIDTH": str(COLUMNS),
        "COLORTERM": "truecolor",
    }
    environment.pop("NO_COLOR", None)
    printed = subprocess.run(
        [sys.executable, "-m", "eomt_deploy", *arguments],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    command = " ".join(["eomt-deploy", *arguments])
    console = Console(record=True, width=COLUMNS, file=io.StringIO())
    console.print(f"$ {command}", highlight=False)
    console.print(Text.from_ansi(printed.strip("\n")))
    return console.export_svg(
        title=command, theme=MONOKAI, code_format=FORMAT, unique_id=f"terminal-{name}"
    )


if __name__ == "__main__":
    for name in PICTURES:
        (HERE / f"{name}.svg").write_text(draw(name), encoding="utf-8")
