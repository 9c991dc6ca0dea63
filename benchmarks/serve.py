"""Load `eomt-deploy serve` with Locust: closed and open loop, and a run with faults.

    pip install locust
    python benchmarks/serve.py model.onnx examples/scenes --json serve.json

Every answer is compared with `Segmenter.predict`. Three phases:

- closed loop: a number of clients that send the next request after each answer;
- open loop: requests at a fixed rate, from below to above the capacity, with a short queue;
- faults: 1% of the images are damaged, 1% of the clients leave, and workers are killed.
"""

from gevent import monkey

monkey.patch_all()  # Locust needs it before all other imports

import argparse  # noqa: E402
import json  # noqa: E402
import platform  # noqa: E402
import random  # noqa: E402
import signal  # noqa: E402
import socket  # noqa: E402
import subprocess  # noqa: E402
import sys  # noqa: E402
import time  # noqa: E402
from collections import Counter  # noqa: E402
from contextlib import contextmanager  # noqa: E402
from pathlib import Path  # noqa: E402

import gevent  # noqa: E402
import numpy as np  # noqa: E402
import psutil  # noqa: E402
from locust import FastHttpUser, constant, constant_throughput, task  # noqa: E402
from locust.env import Environment  # noqa: E402

PERCENTILES = (50, 90, 99)
KILL_AFTER = (300, 800)
"""Minimum and maximum number of answers between two workers that are killed."""
DAMAGED = b"\xff\xd8\xff damaged"


class Load:
    """What the simulated clients send, expect and count."""

    def __init__(self, images, expected):
        self.images, self.expected = images, expected
        self.address = ""
        self.reset()

    def reset(self, damaged=0.0, leaving=0.0, limit=None):
        self.damaged, self.leaving, self.limit = damaged, leaving, limit
        self.sent = 0
        self.outcomes = Counter()
        self.seconds = []
        self.bytes = []

    def take(self):
        """Whether a client may send another request."""
        self.sent += 1
        return self.limit is None or self.sent <= self.limit


LOAD = Load([], [])


class Client(FastHttpUser):
    """Sends images and checks the answers."""

    abstract = True
    network_timeout = connection_timeout = 120.0

    @task
    def segment(self):
        if not LOAD.take():
            gevent.sleep(0.05)
            return
        dice = random.random()
        number = random.randrange(len(LOAD.images))
        if dice < LOAD.leaving:
            leave(LOAD.address, LOAD.images[number])
            LOAD.outcomes["client left"] += 1
            return
        damaged = dice < LOAD.leaving + LOAD.damaged
        body = DAMAGED if damaged else LOAD.images[number]
        began = time.perf_counter()
        with self.client.post("/segment", data=body, catch_response=True) as answer:
            seconds = time.perf_counter() - began
            outcome = self.outcome(answer, damaged, number)
            LOAD.outcomes[outcome] += 1
            if outcome == "right":
                LOAD.seconds.append(seconds)
                LOAD.bytes.append(len(answer.content))
            if is_failure(outcome):
                answer.failure(outcome)
            else:
                answer.success()

    @staticmethod
    def outcome(answer, damaged, number):
        if answer.status_code == 0:
            return "no answer"
        if answer.status_code == 503 and answer.headers.get("retry-after"):
            return "refused (503)"
        if damaged:
            return "damaged, refused (400)" if answer.status_code == 400 else "wrong"
        if answer.status_code != 200:
            return f"status {answer.status_code}"
        return "right" if answer.json() == LOAD.expected[number] else "wrong"


def is_failure(outcome):
    """Whether a client got less than it should."""
    return outcome in ("wrong", "no answer") or outcome.startswith("status")


class Closed(Client):
    """Sends the next request after each answer."""

    wait_time = constant(0)


class Open(Client):
    """Sends one request per second; the number of users is the rate."""

    wait_time = constant_throughput(1)


def leave(address, image):
    """Send a request and leave without reading the answer."""
    host, port = address.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = f"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(image)}\r\n\r\n"
        client.sendall(head.encode() + image)
        gevent.sleep(random.uniform(0, 0.05))


def run(kind, users, seconds, until=lambda: False):
    """Run users for some seconds, or until a condition; returns the seconds."""
    kind.host = LOAD.address
    environment = Environment(user_classes=[kind])
    runner = environment.create_local_runner()
    began = time.monotonic()
    runner.start(users, spawn_rate=max(users, 1))
    while time.monotonic() - began < seconds and not until():
        gevent.sleep(0.1)
    took = time.monotonic() - began
    runner.stop()
    runner.quit()
    return took


def summary(name, seconds):
    """One row of the table."""
    times = 1000 * np.array(LOAD.seconds or [np.nan])
    return {
        "phase": name,
        "per_second": len(LOAD.seconds) / seconds,
        **{f"p{p}_ms": float(np.percentile(times, p)) for p in PERCENTILES},
        "outcomes": dict(LOAD.outcomes),
    }


@contextmanager
def served(model, options):
    """The server as a process; yields its address and process."""
    command = [sys.executable, "-m", "eomt_deploy", "serve", f"m={model}", "--port", "0"]
    command += ["--no-grpc", "--log", "off", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    for line in process.stderr:
        if line.startswith("serving at "):
            break
    try:
        yield line.split()[2].rstrip(";"), process
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(60)


def workers_of(process):
    """The worker processes; Python's helper processes have other command lines."""
    return [
        child
        for child in psutil.Process(process.pid).children()
        if any("spawn_main" in part for part in child.cmdline())
    ]


def kill_workers(process, killed, answered):
    """Kill a worker after every few hundred answers."""
    after = 0
    while True:
        after += random.randint(*KILL_AFTER)
        while answered() < after:
            gevent.sleep(0.02)
        if found := workers_of(process):
            random.choice(found).kill()
            killed.append(after)


def expected_results(model, files):
    """Results of `Segmenter.predict`, from another process: Locust has replaced the threads."""
    program = (
        "import json, sys\nfrom eomt_deploy import Segmenter\n"
        "with Segmenter(sys.argv[1]) as s:\n"
        "    print(json.dumps([s.predict(f).to_dict(masks='rle') for f in sys.argv[2:]]))"
    )
    command = [sys.executable, "-c", program, str(model), *map(str, files)]
    return json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def print_table(rows):
    print("| phase | right answers/s | median | 90% | 99% | outcomes |\n|---|---|---|---|---|---|")
    for row in rows:
        times = " | ".join(f"{row[f'p{p}_ms']:.0f} ms" for p in PERCENTILES)
        outcomes = ", ".join(f"{count} {name}" for name, count in sorted(row["outcomes"].items()))
        print(f"| {row['phase']} | {row['per_second']:.1f} | {times} | {outcomes} |")


def phases_without_faults(given, options):
    """The rows of the closed and the open loop."""
    rows = []
    with served(given.model, [*options, "--max-queue", "32"]) as (LOAD.address, _):
        run(Closed, 2, 3)  # warm-up
        for users in (1, 2, 4, 8, 16):
            LOAD.reset()
            rows.append(summary(f"{users} clients", run(Closed, users, given.seconds)))
        capacity = max(row["per_second"] for row in rows)
        for share in (0.5, 0.8, 1.5, 3):
            rate = max(1, round(share * capacity))
            LOAD.reset()
            took = run(Open, rate, given.seconds)
            rows.append(summary(f"{rate} requests/s ({share:g} of the maximum)", took))
    return rows


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("images", type=Path, help="folder")
    parser.add_argument("--seconds", type=float, default=20, help="of each phase")
    parser.add_argument("--requests", type=int, default=10_000, help="in the phase with faults")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--only-faults", action="store_true")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    files = sorted(p for p in given.images.iterdir() if p.suffix in (".png", ".jpg"))
    LOAD.images = [path.read_bytes() for path in files]
    LOAD.expected = expected_results(given.model, files)
    rows: list = []
    options = ["--workers", str(given.workers)]
    if not given.only_faults:
        rows += phases_without_faults(given, options)
    killed = []
    with served(given.model, [*options, "--max-queue", "1000"]) as (LOAD.address, process):
        LOAD.reset(damaged=0.01, leaving=0.01, limit=given.requests)

        def answered():
            return sum(LOAD.outcomes.values())

        killer = gevent.spawn(kill_workers, process, killed, answered)
        took = run(Closed, 8, 3600, lambda: answered() >= given.requests)
        killer.kill()
        rows.append(summary(f"faults: {len(killed)} workers killed", took))
    print_table(rows)
    if given.json:
        content = {"machine": platform.processor() or platform.machine(), "rows": rows}
        given.json.write_text(json.dumps(content, indent=1) + "\n")
    wrong = sum(
        count for row in rows for kind, count in row["outcomes"].items() if is_failure(kind)
    )
    total = sum(rows[-1]["outcomes"].values())
    print(f"wrong or missing answers: {wrong}; requests in the phase with faults: {total}")
    sys.exit(wrong > 0)


if __name__ == "__main__":
    main()
