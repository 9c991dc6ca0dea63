"""Two Ray nodes in two network namespaces on one machine: a cluster, without a second machine."""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from batch_helpers import check_complete, write_images
from pyarrow import parquet

pytestmark = pytest.mark.external

HEAD, OTHER = "10.231.77.1", "10.231.77.2"
WAIT_SECONDS = 180


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


@pytest.fixture
def namespaces():
    """Two network namespaces that are connected by a cable, and see nothing else."""
    if sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("ip"):
        pytest.skip("network namespaces need Linux, root and the program ip")
    names = [f"eomt-{os.getpid()}-{side}" for side in "ab"]
    made = []
    try:
        for name in names:
            try:
                ip("netns", "add", name)
            except subprocess.CalledProcessError:
                pytest.skip("network namespaces cannot be created here")
            made.append(name)
        links = [f"ve{os.getpid() % 100000}{side}" for side in "ab"]
        ip("link", "add", links[0], "type", "veth", "peer", "name", links[1])
        for name, link, address in zip(names, links, (HEAD, OTHER), strict=True):
            ip("link", "set", link, "netns", name)
            for words in (
                ("addr", "add", f"{address}/24", "dev", link),
                ("link", "set", link, "up"),
                ("link", "set", "lo", "up"),
            ):
                ip("-n", name, *words)
        yield names
    finally:
        for name in made:
            found = subprocess.run(["ip", "netns", "pids", name], capture_output=True, text=True)
            for process in found.stdout.split():
                os.kill(int(process), signal.SIGKILL)
            ip("netns", "del", name)


def inside(name: str, *command: object) -> list[str]:
    return ["ip", "netns", "exec", name, *map(str, command)]


@pytest.mark.slow
def test_a_node_that_dies_costs_no_image(namespaces, exported, tmp_path):
    head, other = namespaces
    paths = write_images(tmp_path / "in", 1500)
    environment = os.environ | {
        "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
    }  # fmt: skip
    folders = [Path(f"/tmp/eomt-nodes-{os.getpid()}-{side}") for side in "ab"]
    ray = [sys.executable, "-m", "ray.scripts.scripts", "start", "--num-cpus=1", "--block"]
    ray += ["--object-store-memory=200000000", "--disable-usage-stats"]
    starts = (
        inside(head, *ray, "--head", f"--node-ip-address={HEAD}", "--port=6379",
               "--include-dashboard=false", f"--temp-dir={folders[0]}"),
        inside(other, *ray, f"--node-ip-address={OTHER}", f"--address={HEAD}:6379",
               f"--temp-dir={folders[1]}"),
    )  # fmt: skip
    nodes = []
    try:
        for start in starts:
            with (tmp_path / f"node{len(nodes)}.log").open("w") as log:
                nodes.append(
                    subprocess.Popen(start, env=environment, stdout=log, stderr=subprocess.STDOUT)
                )
            time.sleep(10)
        output = tmp_path / "out"
        command = inside(
            head, sys.executable, "-m", "eomt_deploy", "batch", exported("panoptic"),
            tmp_path / "in", "-o", output, "--address", f"{HEAD}:6379", "--shard-size", 10,
            "--threads", 1, "--backend", "onnxruntime",
        )  # fmt: skip
        with (tmp_path / "run.log").open("w") as log:
            run = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        ends = time.monotonic() + WAIT_SECONDS
        models: set[str] = set()
        while len(models) < 2 and run.poll() is None and time.monotonic() < ends:
            for index, name in enumerate(namespaces):
                found = subprocess.run(
                    ["ip", "netns", "pids", name], capture_output=True, text=True
                )
                for process in found.stdout.split():
                    text = Path(f"/proc/{process}/cmdline")
                    if text.exists() and "MapWorker" in text.read_text():
                        models.add(str(index))
            time.sleep(0.5)
        said = (tmp_path / "run.log").read_text()
        assert models == {"0", "1"}, said
        while len(list(output.glob("shards/*"))) < 10 and time.monotonic() < ends:
            time.sleep(0.2)
        for process in subprocess.run(
            ["ip", "netns", "pids", other], capture_output=True, text=True
        ).stdout.split():
            os.kill(int(process), signal.SIGKILL)
        assert run.wait(WAIT_SECONDS * 2) == 0, (tmp_path / "run.log").read_text()
        check_complete(output, paths)
        files = list(output.glob("shards/*.parquet"))
        assert sum(parquet.read_metadata(path).num_rows for path in files) == 1500
    finally:
        for node in nodes:
            node.kill()
        for folder in folders:
            shutil.rmtree(folder, ignore_errors=True)
