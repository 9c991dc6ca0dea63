"""The images: the same user, ports and paths in each, exact pins, valid commands.

`docker/check.py` runs the linters and starts built images; these tests need neither.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shlex
import subprocess
import sys
from functools import cache

import pytest
import tomllib
import typer
from container_files import DOCKER, GRPC, HTTP, ROOT, USER, read
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from eomt_deploy import privacy
from eomt_deploy.cli.app import app

IMAGES = ("cpu", "cuda", "jetson", "tensorrt")
TELEMETRY = {privacy.ONNXRUNTIME_SWITCH: "1", privacy.HUB_SWITCH: "1"}
CLI = typer.main.get_command(app)


@cache
def instructions(name):
    """The instructions of a Dockerfile as pairs (keyword, value), without comments."""
    lines = [line for line in read(f"{name}.Dockerfile").splitlines() if line[:1] != "#"]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return [tuple(line.split(None, 1)) for line in joined.splitlines() if line.strip()]


def final_stage(name):
    """The instructions of the image that is built by default, with those of the stage it is from.

    Its last FROM names either a base image or an earlier stage of the file.
    """
    stages = {}
    for keyword, value in instructions(name):
        if keyword == "FROM":
            parent, _, stage = value.partition(" AS ")
            stages[stage] = current = [*stages.get(parent, [])]
        elif stages:
            current.append((keyword, value))
    return current


def values(name, keyword):
    return [value for found, value in final_stage(name) if found == keyword]


def environment(name):
    return dict(word.split("=", 1) for value in values(name, "ENV") for word in shlex.split(value))


def lock_module():
    specification = importlib.util.spec_from_file_location("lock", DOCKER / "lock.py")
    module = importlib.util.module_from_spec(specification)
    sys.modules["lock"] = module  # dataclasses look their module up
    specification.loader.exec_module(module)
    return module


LOCKS = lock_module().ALL


@cache
def locked(name):
    """Requirements of a lock, and the lines of each; comments are removed."""
    text = re.sub(r"^#.*\n", "", read(f"locks/{name}.txt"), flags=re.MULTILINE)
    blocks = re.split(r"\n(?=\S)", text.strip())
    return {
        Requirement(block.split(" \\\n")[0]): block.split("\n")[1:] for block in blocks
    }  # fmt: skip


EACH = pytest.mark.parametrize("name", IMAGES)


def test_every_dockerfile_is_tested():
    assert sorted(path.name for path in DOCKER.glob("*.Dockerfile")) == [
        f"{name}.Dockerfile" for name in IMAGES
    ]


@EACH
def test_the_image_runs_as_a_user_without_rights(name):
    assert values(name, "USER") == [f"{USER}:{USER}"]
    assert f"--uid {USER} --gid {USER}" in " ".join(values(name, "RUN"))
    assert environment(name)["HOME"] == environment(name)["XDG_CACHE_HOME"] == "/cache"


@EACH
def test_the_image_sends_no_telemetry(name):
    assert environment(name).items() >= TELEMETRY.items()


@EACH
def test_signals_reach_the_process(name):
    assert values(name, "STOPSIGNAL") == ["SIGTERM"]
    (entry,) = values(name, "ENTRYPOINT")
    assert json.loads(entry) == ["/usr/local/bin/entrypoint.sh"]  # not a shell with a child
    assert not values(name, "CMD")  # the entry point adds the default command
    assert re.search(r"^exec eomt-deploy", read("entrypoint.sh"), re.MULTILINE)


@EACH
def test_the_ports_are_those_of_the_server(name):
    assert values(name, "EXPOSE") == [f"{HTTP} {GRPC}"]


@EACH
def test_the_health_check_reads_the_readiness(name):
    (check,) = values(name, "HEALTHCHECK")
    program, option, code = json.loads(check.partition(" CMD ")[2] or check.partition("CMD ")[2])
    assert (program, option) == ("python3", "-c")
    compile(code, "HEALTHCHECK", "exec")
    assert f"'127.0.0.1', {HTTP}" in code
    assert "'/v2/health/ready'" in code


@EACH
def test_the_labels_name_the_licence(name):
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    labels = dict(word.split("=", 1) for word in shlex.split(values(name, "LABEL")[-1]))
    assert labels["org.opencontainers.image.licenses"] == project["license"]


@EACH
def test_base_images_have_exact_versions(name):
    found = {}
    for keyword, value in instructions(name):
        if keyword == "ARG" and value.split("=")[0].endswith("_IMAGE"):
            variable, image = value.split("=")
            assert re.search(r":[\w.-]*\d[\w.-]*$", image), image
            found[variable] = image
    assert found["PYTHON_IMAGE"].startswith("docker.io/library/python:")
    stages = set()
    for keyword, value in instructions(name):
        if keyword == "FROM":
            image, _, stage = value.partition(" AS ")
            assert image in stages or image.strip("${}") in found
            stages.add(stage)


def test_all_images_have_the_same_first_steps():
    """The wheel is built with the same Python, compiler and commands."""
    steps = [i for i in instructions("cpu") if i[0] != "ARG" or "PYTHON" in i[1]]
    length = next(n for n, (word, _) in enumerate(steps) if word == "RUN" and n > 6) + 1
    for name in IMAGES[1:]:
        others = [i for i in instructions(name) if i[0] != "ARG" or "PYTHON" in i[1]]
        assert others[:length] == steps[:length]


@EACH
def test_every_package_is_installed_with_its_hash(name):
    """PyTorch in the image `tools` is the documented exception."""
    for keyword, value in instructions(name):
        for command in value.split("&&") if keyword == "RUN" else ():
            if " install " in command and "pip" in command.split(" install ")[0]:
                safe = "--require-hashes -r" in command or "--no-deps --no-index" in command
                assert safe or '"torch==$TORCH_VERSION"' in command, command


def test_every_lock_is_used():
    used = {name for image in IMAGES for name in re.findall(r"locks/(\w+)\.txt", read(f"{image}.Dockerfile"))}  # noqa: E501  # fmt: skip
    assert used == set(LOCKS) == {path.stem for path in (DOCKER / "locks").iterdir()}


@pytest.mark.parametrize("name", LOCKS)
def test_every_pin_is_exact_and_has_a_hash(name):
    assert "http" + "s://" not in read(f"locks/{name}.txt")
    for requirement, lines in locked(name).items():
        assert [s.operator for s in requirement.specifier] == ["=="], requirement
        hashes = [line.strip(" \\") for line in lines]
        assert hashes
        assert all(re.fullmatch(r"--hash=sha256:[0-9a-f]{64}", line) for line in hashes)


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_has_what_the_package_requires(name):
    """If not: `python docker/lock.py`."""
    marker = {"python_version": "3.11", "python_full_version": "3.11.15", "extra": ""}
    pins = {
        canonicalize_name(requirement.name): next(iter(requirement.specifier)).version
        for requirement in locked(name)
        if requirement.marker is None or requirement.marker.evaluate(marker)
    }
    for text in LOCKS[name].requirements():
        wanted = Requirement(text)
        if wanted.marker is None or wanted.marker.evaluate(marker):
            assert pins[canonicalize_name(wanted.name)] in wanted.specifier, text
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            tested = Requirement(line)
            pin = pins.get(canonicalize_name(tested.name))
            assert pin is None or pin in tested.specifier, line


def test_pytorch_has_the_tested_version():
    (version,) = (v.split("=")[1] for k, v in instructions("cpu") if k == "ARG" and "TORCH_V" in v)
    assert f"torch=={version}\n" in (ROOT / "constraints.txt").read_text(encoding="utf-8")


def test_secrets_and_models_do_not_enter_the_build():
    rules = (ROOT / ".dockerignore").read_text(encoding="utf-8").splitlines()
    rules = [rule for rule in rules if rule[:1] not in ("#", "")]
    assert rules[0] == "*"  # only what is named
    assert not any("token" in rule or rule in ("!.git", "!docker/models") for rule in rules)
    for rule in rules:
        if rule[0] == "!":
            assert (ROOT / rule[1:].removesuffix("/*.toml")).exists(), rule
    for suffix in ("onnx", "engine", "pt2"):
        assert f"**/*.{suffix}" in rules
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").splitlines()
    assert {"/docker/token", "/docker/models/"} <= set(ignored)


@pytest.fixture
def entry(tmp_path):
    """Run the entry point with a program that prints its arguments and the token."""
    program = tmp_path / "bin" / "eomt-deploy"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\nprintf "%s\\n" "$@" "token=${EOMT_DEPLOY_TOKEN:-}"\n')
    program.chmod(0o755)
    (tmp_path / "models").mkdir()

    def run(*arguments, code=0, **variables):
        path = os.pathsep.join([str(program.parent), os.environ["PATH"]])
        done = subprocess.run(
            ["sh", DOCKER / "entrypoint.sh", *arguments],
            env={"PATH": path, "EOMT_DEPLOY_MODELS": str(tmp_path / "models"), **variables},
            capture_output=True, text=True,
        )  # fmt: skip
        assert done.returncode == code, done.stderr
        return done.stdout.splitlines() or done.stderr

    return run


POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs a POSIX shell")


@POSIX
def test_the_entry_point_passes_arguments_on(entry):
    assert entry("predict", "a model.onnx") == ["predict", "a model.onnx", "token="]


@POSIX
def test_the_entry_point_serves_all_models(entry, tmp_path):
    assert "There is no model file" in entry(code=2)
    folder = tmp_path / "models"
    for name in ("b.xml", "b.bin", "a b.onnx", "c.engine", "c.engine.json", "d.pt2", "README.md"):
        (folder / name).touch()
    *found, token = entry(EOMT_DEPLOY_TOKEN="secret")
    models = [str(folder / name) for name in ("a b.onnx", "b.xml", "c.engine", "d.pt2")]
    assert found == ["serve", *models, "--host", "0.0.0.0"]
    assert token == "token=secret"


@POSIX
def test_the_entry_point_reads_the_token_from_a_file(entry, tmp_path):
    secret = tmp_path / "token"
    secret.write_text("0123456789abcdef\n")
    assert entry("doctor", EOMT_DEPLOY_TOKEN_FILE=str(secret))[-1] == "token=0123456789abcdef"
    assert "cannot be read" in entry("doctor", code=2, EOMT_DEPLOY_TOKEN_FILE="/none")


def container_commands():
    """The arguments of eomt-deploy in each command of the page that starts a container."""
    page = (ROOT / "docs" / "containers.md").read_text(encoding="utf-8")
    for block in re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL):
        for line in re.sub(r"\\\n\s*", " ", block).splitlines():
            words = shlex.split(line, comments=True)
            if words[:2] == ["docker", "run"]:
                at = next(i for i, word in enumerate(words) if word.startswith("eomt-deploy:"))
                yield words[at], words[at + 1 :]


SERVE = ["serve", "/models/tiny.onnx", "--host", "0.0.0.0"]
"""What the entry point runs without arguments."""


def test_commands_in_containers_exist():
    found = list(container_commands())
    assert {image for image, _ in found} == {f"eomt-deploy:{name}" for name in (*IMAGES, "tools")}
    for _, words in [*found, ("", SERVE)]:
        if not words:
            continue
        context = typer.Context(CLI, info_name="eomt-deploy")
        CLI.commands[words[0]].make_context(words[0], words[1:], parent=context)  # raises
