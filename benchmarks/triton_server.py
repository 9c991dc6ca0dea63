"""Install and run NVIDIA's tritonserver without a container, from the package nvidia-pytriton.

The package contains the server (Triton 2.51, container release 24.10) with the Python backend only,
for x86-64 Linux. Its Python processes cannot exchange texts with numpy 2, so they get numpy 1 and
otherwise the packages of this Python. The tests and `triton_results.py` use it.
"""

from __future__ import annotations

import os
import platform
import shutil
import signal
import site
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

ROOT = Path(__file__).parents[1]
SERVER = ("nvidia-pytriton==0.7.0",)
PACKAGES = ("numpy==1.26.4", "opencv-python-headless==4.11.0.86")
READY_SECONDS = 120
PYTHON = f"{sys.version_info.major}.{sys.version_info.minor}"


def problem() -> str:
    """Why the server cannot run on this machine; empty if it can."""
    if (sys.platform, platform.machine()) != ("linux", "x86_64"):
        return "nvidia-pytriton exists only for x86-64 Linux"
    if sys.version_info >= (3, 13):
        return f"numpy 1 does not exist for Python {PYTHON}"
    if not _libpython().is_file():
        return f"this Python has no shared library ({_libpython()}), which Triton's backend loads"
    return ""


def _libpython() -> Path:
    names = sysconfig.get_config_vars("LIBDIR", "INSTSONAME")
    return Path(*(name or "" for name in names))


def install(folder: Path) -> None:
    """Install the server and numpy 1 into a folder (about 350 MB), unless they are there.

    Raises:
        subprocess.CalledProcessError: pip failed.
    """
    done = folder / "installed"
    wanted = "\n".join((*SERVER, *PACKAGES, PYTHON))
    if done.is_file() and done.read_text() == wanted:
        return
    for name, packages in (("server", SERVER), ("packages", PACKAGES)):
        shutil.rmtree(folder / name, ignore_errors=True)
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--only-binary=:all:"]
        subprocess.run([*command, "--target", folder / name, *packages], check=True)
    _make_backend(folder)
    done.write_text(wanted)


def _make_backend(folder: Path) -> None:
    """The backend folder with the executable for this version of Python."""
    triton = folder / "server" / "pytriton" / "tritonserver"
    backend = folder / "backends" / "python"
    shutil.rmtree(backend, ignore_errors=True)
    shutil.copytree(triton / "backends" / "python", backend)
    shutil.copy2(triton / "python_backend_stubs" / PYTHON / "triton_python_backend_stub", backend)


def _make_python(folder: Path) -> Path:
    """A virtual environment with numpy 1, this repository and the packages of this Python.

    Triton's Python processes ignore PYTHONPATH; they find packages by the first python3 in PATH.

    Returns:
        its folder of programs.
    """
    home = folder / f"python-{os.getpid()}"
    packages = home / "lib" / f"python{PYTHON}" / "site-packages"
    packages.mkdir(parents=True, exist_ok=True)
    paths = (folder / "packages", ROOT, *site.getsitepackages())
    (packages / "paths.pth").write_text("".join(f"{path}\n" for path in paths))
    (home / "bin").mkdir(exist_ok=True)
    base = Path(sys.base_prefix) / "bin"
    (home / "pyvenv.cfg").write_text(f"home = {base}\ninclude-system-site-packages = false\n")
    for name in ("python", "python3"):
        with suppress(FileExistsError):
            (home / "bin" / name).symlink_to(base / f"python{PYTHON}")
    return home / "bin"


class TritonServer:
    """A running tritonserver.

    Args:
        repository: the model repository.
        folder: where :func:`install` installed it.
        log: file for its output.
        options: more options of the server.

    Attributes:
        http: host and port of the HTTP protocol.
        grpc: host and port of gRPC.

    Raises:
        RuntimeError: it did not become ready; the message is the end of its log.
    """

    def __init__(
        self, repository: Path, folder: Path, log: Path, options: Sequence[str] = ()
    ) -> None:
        http, grpc = _free_ports(2)
        self.http, self.grpc = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        self._python = _make_python(folder)
        libraries = (_libpython().parent, folder / "server" / "nvidia_pytriton.libs")
        environment = {
            **os.environ,
            "PATH": f"{self._python}:{os.environ['PATH']}",
            "LD_LIBRARY_PATH": ":".join(map(str, libraries)),
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        binary = folder / "server" / "pytriton" / "tritonserver" / "bin" / "tritonserver"
        command = [
            str(binary),
            f"--model-repository={repository}",
            f"--backend-directory={folder / 'backends'}",
            f"--http-port={http}",
            f"--grpc-port={grpc}",
            "--http-address=127.0.0.1",
            "--grpc-address=127.0.0.1",
            "--allow-metrics=false",
            "--disable-auto-complete-config",
            *options,
        ]
        self._log = log
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                command, env=environment, stdout=output, stderr=subprocess.STDOUT
            )
        try:
            self._wait()
        except BaseException:
            self.close()
            raise

    def _wait(self) -> None:
        end = time.monotonic() + READY_SECONDS
        while time.monotonic() < end and self._process.poll() is None:
            with suppress(urllib.error.URLError, OSError):
                urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5).close()
                return
            time.sleep(0.1)
        raise RuntimeError(f"tritonserver did not become ready:\n{self.log()[-4000:]}")

    def log(self) -> str:
        """The output of the server so far."""
        return self._log.read_text(errors="replace")

    def close(self) -> None:
        """Stop the server."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(30)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
        shutil.rmtree(self._python.parent, ignore_errors=True)

    def __enter__(self) -> TritonServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _free_ports(count: int) -> list[int]:
    """Ports that are free now."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


NETWORK_CODE = '''\
"""Runs the network of a repository in Python, in place of a backend that this server lacks."""

from pathlib import Path

import triton_python_backend_utils as server

from eomt_deploy import open_engine
from eomt_deploy.contract import INPUT, OUTPUTS


class TritonPythonModel:
    def initialize(self, args):
        folder = Path(args["model_repository"]) / args["model_version"]
        self.engine = open_engine(next(folder.glob("model.[ox][nm]*")), device="cpu")

    def execute(self, requests):
        responses = []
        for request in requests:
            images = server.get_input_tensor_by_name(request, INPUT).as_numpy()
            outputs = zip(OUTPUTS, self.engine.run(images))
            tensors = [server.Tensor(name, array) for name, array in outputs]
            responses.append(server.InferenceResponse(tensors))
        return responses

    def finalize(self):
        self.engine.close()
'''


def run_network_in_python(network: Path) -> None:
    """Let Python run a NAME_network of the forms bls and ensemble, with the same config.pbtxt.

    Args:
        network: folder of the model.
    """
    config = network / "config.pbtxt"
    lines = config.read_text().splitlines(keepends=True)
    left_out = ("platform:", "backend:", "default_model_filename:")
    kept = [line for line in lines if not line.startswith(left_out)]
    config.write_text("".join(['backend: "python"\n', *kept]))
    for version in network.iterdir():
        if version.name.isdigit():
            (version / "model.py").write_text(NETWORK_CODE)
