"""Write the files in docker/locks/: all packages of each image, with versions and hashes.

Run it with ``pip install uv`` and ``python docker/lock.py`` after a change of ``pyproject.toml`` or
``constraints.txt``. Packages that constraints.txt lists get the version that the tests run with.
The locks hold for Python 3.11 and later, on x86-64 and ARM64.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import tomllib

ROOT = Path(__file__).parents[1]
LOCKS = ROOT / "docker" / "locks"
HEADER = "# Written by `python docker/lock.py`.\n"
TORCH_NEEDS = (
    "filelock", "fsspec", "jinja2", "networkx", "setuptools<82", "sympy", "typing-extensions",
)  # fmt: skip
"""What PyTorch for the CPU requires. The package itself is not in a lock, see cpu.Dockerfile."""


@dataclass(frozen=True)
class Lock:
    """The packages of one image.

    Attributes:
        extras: extras of eomt-deploy.
        without: packages of these extras that come from elsewhere, e.g. from the base image.
        more: further requirements.
    """

    extras: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    more: tuple[str, ...] = ()

    def requirements(self) -> list[str]:
        project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        wanted = list(project["dependencies"]) if self.extras else []
        for extra in self.extras:
            wanted += project["optional-dependencies"][extra]
        return [r for r in wanted if not r.startswith(self.without or ("-",))] + list(self.more)


def build_requirements() -> tuple[str, ...]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    return tuple(project["build-system"]["requires"])


# The TensorRT and Jetson images get TensorRT and NVRTC from NVIDIA's packages. They need the extra
# cpu as well: ONNX Runtime computes the reference that `build` and `verify` compare with.
NVIDIA = Lock(("cpu", "serve", "tensorrt"), without=("tensorrt", "nvidia-cuda-nvrtc"))
ALL = {
    "build": Lock(more=build_requirements()),
    "cpu": Lock(("cpu", "openvino", "serve")),
    "tools": Lock(
        ("cpu", "openvino", "serve", "export", "video", "batch"),
        without=("torch",),
        more=TORCH_NEEDS,
    ),
    # CUDA and cuDNN from NVIDIA's packages on PyPI, for the base image has neither.
    "cuda": Lock(("cuda", "serve"), more=("onnxruntime-gpu[cuda,cudnn]",)),
    "tensorrt": NVIDIA,
}


def write(name: str) -> None:
    """Resolve and write one lock.

    Raises:
        subprocess.CalledProcessError: the requirements cannot be resolved.
    """
    command = [
        sys.executable, "-m", "uv", "pip", "compile", "-", "--quiet", "--no-config", "--universal",
        "--python-version", "3.11", "--generate-hashes", "--no-emit-index-url", "--no-header",
        "--no-annotate", "--no-strip-extras", "--constraint", ROOT / "constraints.txt",
    ]  # fmt: skip
    wanted = "\n".join(ALL[name].requirements())
    done = subprocess.run(
        command, input=wanted, text=True, stdout=subprocess.PIPE, check=True, cwd=LOCKS
    )
    (LOCKS / f"{name}.txt").write_text(HEADER + done.stdout, encoding="utf-8")
    print(f"wrote docker/locks/{name}.txt")


if __name__ == "__main__":
    for chosen in sys.argv[1:] or ALL:
        write(chosen)
