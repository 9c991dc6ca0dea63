"""The documentation is correct: its links, commands, options, files and outputs."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import tomllib
import typer

from eomt_deploy import catalog
from eomt_deploy.backends import BACKENDS
from eomt_deploy.cli.app import app

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
README = (ROOT / "README.md").read_text(encoding="utf-8")
specification = importlib.util.spec_from_file_location("check_links", DOCS / "check_links.py")
check_links = importlib.util.module_from_spec(specification)
specification.loader.exec_module(check_links)
PAGES = check_links.pages()
WRITTEN = [page for page in PAGES if page.name != "commands.md"]  # that one is generated


def read(path):
    return path.read_text(encoding="utf-8")


def blocks(text, *languages):
    """The code blocks of a page in these languages, without their indentation."""
    pattern = rf"^( *)```(?:{'|'.join(languages)})\n(.*?)^\1```"
    found = re.findall(pattern, text, re.MULTILINE | re.DOTALL)
    return [re.sub(rf"^{indent}", "", code, flags=re.MULTILINE) for indent, code in found]


def test_the_front_page_is_short():
    assert len(README.splitlines()) <= 150
    assert len(README.split()) <= 900
    assert "<this repository>" not in README


def test_local_links():
    assert {ROOT / "README.md", DOCS / "index.md", ROOT / "llms.txt"} <= set(PAGES)
    assert not [problem for page in PAGES for problem in check_links.broken_links(page)]


def test_a_broken_link_is_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "# A heading\n[a](missing.md) [b](#a-heading) [c](#other) [d](page.md#none) `[e](code.md)`"
    )
    problems = list(check_links.broken_links(page))
    assert [problem.split(": ")[1] for problem in problems] == [
        "missing.md", "#other", "page.md#none",
    ]  # fmt: skip


def test_the_reference_of_the_commands_is_up_to_date():
    """`python docs/commands.py` writes it."""
    specification = importlib.util.spec_from_file_location("commands", DOCS / "commands.py")
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    assert read(DOCS / "commands.md") == module.page()
    drawn = re.sub(r"<[^>]*>", "", read(DOCS / "pictures" / "help.svg"))
    for command in typer.main.get_command(app).commands:
        assert command in drawn
    for name in module.PICTURES:
        assert "url(http" not in read(DOCS / "pictures" / f"{name}.svg")  # no fonts from elsewhere


def commands():
    """Every command line of eomt-deploy in the pages, with its page."""
    for page in WRITTEN:
        for block in blocks(read(page), "bash", "console"):
            for line in block.splitlines():
                line = line.removeprefix("$ ").strip()
                if line.startswith("eomt-deploy "):
                    yield page.name, line
        for line in re.findall(r"`(eomt-deploy [^`]+)`", read(page)):
            yield page.name, line


def test_commands_and_options_exist():
    root = typer.main.get_command(app)
    known = root.commands
    wrong, checked = [], 0
    for page, line in commands():
        words = shlex.split(line, comments=True)[1:]
        command = root if words[0].startswith("-") else known.get(words[0])
        if words[0] == "cache" and command and words[1:]:
            command, words = command.commands.get(words[1]), words[1:]
        if command is None:
            wrong.append(f"{page}: {line}: there is no command {words[0]}")
            continue
        options = {name for p in command.params for name in (*p.opts, *p.secondary_opts)}
        for option in (word for word in words if re.match(r"--?[a-z]", word)):
            checked += 1
            if option not in options | {"--help", "-h"}:
                wrong.append(f"{page}: {line}: {words[0]} has no option {option}")
    assert not wrong, "\n".join(wrong)
    assert checked > 50


def test_options_in_the_text_exist():
    known = typer.main.get_command(app).commands.values()
    options = {n for c in known for p in c.params for n in (*p.opts, *p.secondary_opts)}
    others = {"--index-url", "--upgrade", "--count", "--seed", "--first", "--skip", "--runs"}
    wrong = [
        f"{page.name}: {option}"
        for page in WRITTEN
        if page.parent in (ROOT, DOCS, DOCS / "backends") and page.name != "CHANGELOG.md"
        for code in re.findall(r"`([^`\n]*)`", read(page))
        for option in re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", code)
        if option not in options | others and "python" not in code
    ]
    assert not wrong


def test_extras_exist():
    project = tomllib.loads(read(ROOT / "pyproject.toml"))["project"]
    extras = set(project["optional-dependencies"])
    for page in PAGES:
        for names in re.findall(r"'\.\[([a-z,-]+)\]'", read(page)):
            assert set(names.split(",")) <= extras, f"{page.name}: {names}"
    table = re.findall(r"^\| `([a-z-]+)` \|", read(DOCS / "install.md"), re.MULTILINE)
    assert set(table) <= extras


def test_every_backend_has_a_page():
    index = read(DOCS / "backends" / "index.md")
    for name in BACKENDS:
        assert (DOCS / "backends" / f"{name}.md").is_file()
        assert f"| `{name}` |" in index
        assert f"docs/backends/{name}.md" in README


def test_every_class_list_is_named():
    page = read(DOCS / "exporting.md")
    for name in set(catalog.class_lists()) - {"tiny_scenes"}:
        assert f"`{name}`" in page


@pytest.fixture(scope="module")
def clone(tmp_path_factory):
    """A copy of the repository that consists of links, so that files can be added."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("eomt_deploy", "engines", "examples"):
        (folder / name).symlink_to(ROOT / name)
    for name in ("export", "export/classes", "benchmarks"):
        (folder / name).mkdir()
        for path in (ROOT / name).iterdir():
            if path.is_file():
                (folder / name / path.name).symlink_to(path)
    return folder


# In one process, since importing PyTorch takes seconds.
COMMANDS = """
import json, sys
import traces
from eomt_deploy.cli import main

traces.install()
for arguments in json.loads(sys.argv[1]):
    try:
        main(arguments)
    except SystemExit as stop:
        if stop.code:
            raise
    print("next command")
"""


@pytest.fixture(scope="module")
def added(clone):
    """What commands print after a checkpoint and a table were added as the pages describe it.

    The weights of `my-street-model`, which is exported as `tiny.onnx`, are those of the embedded
    model.
    """
    entry, classes = blocks(read(DOCS / "add-a-checkpoint.md"), "toml")
    (clone / "export" / "my-street-model.toml").write_text(entry)
    (clone / "export" / "classes" / "my_classes.toml").write_text(classes)
    suite, _ = blocks(read(DOCS / "add-a-table.md"), "toml")
    (clone / "benchmarks" / "my_table.toml").write_text(suite)
    commands = (
        ("export", "my-street-model", "-o", "tiny.onnx"),
        ("list", "--dataset", "my street images"),
        ("bench", "--suite", "my_table", "--count-only"),
    )
    done = subprocess.run(
        [sys.executable, "-c", COMMANDS, json.dumps(commands)],
        env=os.environ | {"PYTHONPATH": os.pathsep.join([str(clone), str(ROOT / "tests")])},
        cwd=clone, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    *printed, _ = done.stdout.split("next command\n")
    return dict(zip(("export", "list", "bench"), printed, strict=True))


def test_add_a_checkpoint_as_written(added):
    assert "wrote tiny.onnx" in added["export"]
    assert "my-street-model" in added["list"]


def test_add_a_table_as_written(added):
    _, paper = blocks(read(DOCS / "add-a-table.md"), "toml")
    assert tomllib.loads(paper)["paper"]["metric"] == "PQ"
    assert "EoMT-S, 640x640" in added["bench"]


@pytest.mark.parametrize("page", ["README.md", "docs/quick-start.md", "docs/errors.md"])
def test_python_prints_what_the_page_shows(page, clone, added, monkeypatch):
    text = read(ROOT / page)
    pairs = re.findall(r"```python\n(.*?)```\n\n```text\n(.*?)```", text, re.DOTALL)
    assert len(pairs) == 1
    monkeypatch.chdir(clone)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(pairs[0][0], {})
    assert printed.getvalue() == pairs[0][1]


@pytest.mark.filterwarnings("ignore")  # deprecations inside Sphinx's extensions
def test_the_documentation_builds(tmp_path, monkeypatch, capsys):
    for package in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(package, reason="the documentation needs the extra docs")
    from sphinx.cmd.build import main

    monkeypatch.setattr(sys, "path", [*sys.path])  # conf.py adds to it
    monkeypatch.setattr(logging, "basicConfig", lambda **_: None)  # a theme calls it
    # In this process, so that PyTorch is not imported again.
    options = ("-W", "--keep-going", "-q", "-b", "html", "-d", tmp_path / "trees")
    code = main([*map(str, options), str(DOCS), str(tmp_path / "html")])
    assert code == 0, capsys.readouterr().err
    assert "Segmenter" in read(tmp_path / "html" / "api.html")
