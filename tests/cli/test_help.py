"""Help pages, their examples, TAB completion, and command lines that cannot be parsed."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys

import pytest
import typer
from clips import write_clip

from eomt_deploy.benchmarking.paper.ladder import BACKBONES
from eomt_deploy.cli.app import COMMANDS, app
from eomt_deploy.cli.completion import COMPLETIONS
from eomt_deploy.cli.examples import EXAMPLES
from eomt_deploy.data_files import folder

ROOT = typer.main.get_command(app)
LINES = [(name, line) for name, lines in EXAMPLES.items() for line in lines]
QUICK = ("list", "export", "build", "inspect", "verify", "predict", "compare", "doctor", "cache show", "cache clear")  # noqa: E501  # fmt: skip
"""Commands whose examples are run, in this order, if they need no GPU and no other files."""
SKIPPED = ("--run", "last.ckpt", ".engine", "coco.onnx", "int8")


TABS = [
    (("export", "m", "--precision", "f"), ["fp16", "fp32", "fp8"]),
    (("export", "eomt-t"), ["eomt-tiny-scenes"]),
    (("predict", "m.onnx", "i", "--device", ""), ["cpu", "cuda"]),
    (("bench", "--suite", "table1"), ["table1"]),
    (("bench", "--precision", "amp"), ["amp-bf16", "amp-fp16"]),
]
"""Words before the TAB key, and what is offered for the last one."""


def leaves():
    """Every command that does something, with its context, by name."""
    context = typer.Context(ROOT, info_name="eomt-deploy")
    for name, command in ROOT.commands.items():
        for inner, leaf in getattr(command, "commands", {"": command}).items():
            yield f"{name} {inner}".strip(), leaf, context


def words(line):
    return shlex.split(line)[1:]


def test_every_help_page_ends_with_examples(cli):
    assert {name for name, _, _ in leaves()} == set(EXAMPLES)
    for name, lines in EXAMPLES.items():
        code, out, _ = cli(*name.split(), "-h")
        assert code == 0
        assert out.rstrip().endswith(lines[-1])
        for line in lines:
            assert line in out
            assert line.startswith(f"eomt-deploy {name}")


@pytest.mark.parametrize(("name", "line"), LINES, ids=[line for _, line in LINES])
def test_the_parser_takes_every_example(name, line):
    leaf, context = next((leaf, context) for n, leaf, context in leaves() if n == name)
    arguments = words(line)[len(name.split()) :]
    leaf.make_context(name, arguments, parent=context)  # raises if an option does not exist


def test_the_quick_examples_run(cli, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    scenes = folder("examples") / "scenes"
    (tmp_path / "images").mkdir()
    shutil.copy(scenes / "scene-1.png", tmp_path / "images")
    shutil.copy(scenes / "scene-2.png", tmp_path / "image.png")
    write_clip(tmp_path / "clip.mp4", [0, 0.04])
    ran = 0
    for name in QUICK:
        for line in EXAMPLES[name]:
            if not any(word in line for word in SKIPPED):
                code, _, err = cli(*words(line))
                assert code == 0, (line, err)
                ran += 1
    assert ran >= len(QUICK)
    assert (tmp_path / "results" / "predictions.json").is_file()
    assert (tmp_path / "difference.png").is_file()


def test_no_description_is_cut(cli):
    for command in ((), ("cache",)):
        assert "..." not in cli(*command, "-h")[1].replace("[ARGS]...", "")


@pytest.fixture(params=TABS, ids=[" ".join(typed) for typed, _ in TABS])
def tab(request, monkeypatch):
    """The environment in which bash asks what it should offer for the last word; and the answer."""
    typed, offered = request.param
    line = shlex.join(["eomt-deploy", *typed])
    monkeypatch.setenv("_EOMT_DEPLOY_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line if typed[-1] else line.removesuffix("''"))
    monkeypatch.setenv("COMP_CWORD", str(len(typed)))
    return offered


def test_the_tab_key(cli, tab):
    _, out, _ = cli()
    assert out.split() == tab


@pytest.mark.parametrize("tab", TABS[:1], indirect=True)
def test_the_tab_key_in_its_own_process(tab):
    program = "import sys; sys.argv[0] = 'eomt-deploy'; from eomt_deploy.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.split() == tab


@pytest.mark.parametrize(
    ("command", "option", "offered"),
    [
        ("list", "task", {"semantic", "instance", "panoptic"}),
        ("list", "dataset", {"COCO", "ADE20K"}),
        ("export", "classes", {"camvid", "ade20k"}),
        ("export", "profile", {"tensorrt-rtx"}),
        ("build", "target", {"tensorrt", "tensorrt-rtx", "openvino"}),
        ("build", "arithmetic", {"auto", "bf16"}),
        ("build", "partitioner", {"xnnpack", "coreml", "qnn"}),
        ("eval", "format", {"coco-panoptic", "cityscapes"}),
        ("compare", "backend", {"onnxruntime", "emulation"}),
        ("bench", "scope", {"end-to-end"}),
        ("bench", "scenario", {"server"}),
        ("bench", "runtime", {"torch-eager", "openvino"}),
        ("bench", "backbone", {"tiny", "giant"}),
    ],
)
def test_values_that_are_offered(command, option, offered):
    leaf = ROOT.commands[command]
    (parameter,) = (p for p in leaf.params if p.name == option)
    context = leaf.make_context(command, [], resilient_parsing=True)
    found = {item.value for item in parameter.shell_complete(context, "")}
    assert offered <= found


def test_every_option_with_fixed_values_completes_them():
    """A help text that starts with its values, e.g. "fp32, fp16 or int8 (default: fp32)."."""
    listed = re.compile(r"^[a-z][\w-]*(, [\w+-]+)* or [\w-]+( \(|\.|,| for|:|;)")
    for name, command in ROOT.commands.items():
        for parameter in command.params:
            if listed.match(getattr(parameter, "help", None) or ""):
                key = parameter.name
                assert key in COMPLETIONS or f"{name} {key}" in COMPLETIONS, (name, key)
    assert set(COMPLETIONS["backbone"]()) <= set(BACKBONES)


@pytest.mark.parametrize(
    ("arguments", "what", "fix"),
    [
        (("predict", "m.onnx", "x"), "Missing option '-o'", EXAMPLES["predict"][0]),
        (("export", "x", "-o"), "Option '-o' requires an argument", EXAMPLES["export"][0]),
        (("export", "--sise", "3"), "No such option: --sise", "`eomt-deploy export -h` shows"),
        (("list", "--max-params", "big"), "--max-params", EXAMPLES["list"][0]),
        (("preditc",), "No such command 'preditc'", "`eomt-deploy -h` shows all commands"),
    ],
)
def test_a_command_line_that_cannot_be_parsed(cli, arguments, what, fix):
    code, out, err = cli(*arguments)
    assert code == 2
    assert out == ""
    first, second = err.splitlines()[:2]
    assert first.startswith("error E201: ")
    assert what in first
    assert second.startswith("  fix: ")
    assert fix in second


def test_no_arguments_show_the_help(cli):
    code, out, err = cli()
    assert code == 2
    assert all(name in out + err for name in COMMANDS)
    assert "error" not in err
