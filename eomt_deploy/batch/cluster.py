"""Start Ray on this machine, or join a cluster."""

from __future__ import annotations

import logging
import os
import secrets
import shutil
import signal
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from eomt_deploy.devices import memory_bytes
from eomt_deploy.errors import DeviceError, MissingDependencyError, first_line

PREFIX = "eomt-deploy-ray-"
MAX_FOLDER = 40
"""Maximum length of Ray's folder: its sockets are deep inside, and Linux allows 107 characters."""
OBJECT_STORE = (256 << 20, 4 << 30)
"""Minimum and maximum size in bytes of the memory for images on their way between processes."""
MEMORY_SHARE = 8
"""The object store gets this fraction of the memory."""

NOT_NEEDED = ("start_api_server", "start_log_monitor", "start_monitor")
"""Functions of Ray that start processes.

Without the dashboard, the API server only collects usage statistics. Even if they are off, it asks
the metadata services of three clouds where it runs. The log monitor sends the output of workers to
the driver, which does not show it. The monitor adds machines to a cluster.
"""

STARTS = 3
"""Attempts to start Ray: on a busy machine it needs more than the 30 s that it waits for itself."""


def import_ray(address: str | None = None) -> Any:
    """Import Ray with a quiet log, without telemetry, and with a random token for a local Ray.

    Ray reads these variables when it is imported, and its processes inherit them. Without a token
    in the environment, Ray would write one into the home folder.

    Args:
        address: address of a cluster, which has its own token.

    Raises:
        MissingDependencyError: the extra is not installed.
    """
    os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
    os.environ.setdefault("RAY_NUM_REDIS_GET_RETRIES", "120")  # seconds until GCS must answer
    os.environ.setdefault("RAY_DATA_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    if address is None and "ray" not in sys.modules:
        # Without this, Ray looks for its address with a socket to a server in the internet, and
        # uses it. The name is from other systems, where Ray uses the loopback interface.
        os.environ.setdefault("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
        if "RAY_AUTH_MODE" not in os.environ:
            os.environ["RAY_AUTH_MODE"] = "token"
            os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)
    try:
        import pyarrow  # noqa: F401
        import ray
        import ray.data
    except ImportError as error:
        raise MissingDependencyError(
            f"Batch jobs need packages that are not installed: {error.name or error}.",
            fix="pip install 'eomt-deploy[batch]'",
        ) from error
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.CRITICAL + 1)  # errors reach us as exceptions
    return ray


@contextmanager
def running_ray(address: str | None, *, slots: int, gpus: int) -> Iterator[Any]:
    """The module ``ray``, connected; at the end all processes that were started here are gone.

    A Ray on this machine connects only through the loopback interface, has no dashboard, sends no
    telemetry, requires a random token, and keeps its files in a temporary folder that is removed.

    Args:
        address: address of a cluster; None starts Ray here.
        slots: number of actors that Ray may run here; Ray calls them CPUs.
        gpus: number of GPUs of this machine.

    Raises:
        MissingDependencyError: the extra is not installed.
        DeviceError: Ray cannot be started or reached.
    """
    ray = import_ray(address)
    options: dict[str, Any] = {
        "log_to_driver": False, "configure_logging": False, "ignore_reinit_error": False,
    }  # fmt: skip
    if ray.is_initialized():  # by a program that uses run() as a function
        yield ray
        return
    if address is not None:
        _connect(ray, {"address": address, **options}, f"The Ray cluster {address}")
        try:
            yield ray
        finally:
            ray.shutdown()
        return
    folder = _folder()
    memory = min(max(OBJECT_STORE[0], (memory_bytes() or 0) // MEMORY_SHARE), OBJECT_STORE[1])
    local = {
        "address": "local", "num_cpus": slots, "num_gpus": gpus, "include_dashboard": False,
        "object_store_memory": memory, "_temp_dir": str(folder),
    }  # fmt: skip
    try:
        for attempt in range(STARTS):
            try:
                _connect(ray, {**local, **options}, "Ray")
                break
            except DeviceError:
                ray.shutdown()
                if attempt + 1 == STARTS:
                    raise
        yield ray
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def _connect(ray: Any, options: dict[str, Any], name: str) -> None:
    handlers = _handlers()
    try:
        with _quiet(), _only_needed_processes():
            ray.init(**options)
    except Exception as error:  # Ray has many
        reason = first_line(error)
        raise DeviceError(
            f"{name} cannot be {'reached' if 'cluster' in name else 'started'}: {reason}.",
            fix="Check the address with `ray status`, and use the same versions of Ray and Python."
            if "cluster" in name
            else "Check that there is free memory, and free space in the temporary folder.",
        ) from error
    finally:
        _restore(handlers)  # Ray replaced that of SIGTERM, which keeps finished shards


@contextmanager
def _only_needed_processes() -> Iterator[None]:
    """Do not start the processes of Ray that one machine does not need."""
    try:
        from ray._private import node

        kind: Any = node.Node
    except (ImportError, AttributeError):  # another version of Ray
        yield
        return
    # Each on its own: a version without one of them must not start the others.
    before = {name: getattr(kind, name) for name in NOT_NEEDED if hasattr(kind, name)}
    for name in before:
        setattr(kind, name, lambda *_, **__: None)
    try:
        yield
    finally:
        for name, function in before.items():
            setattr(kind, name, function)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide what Ray and its processes print on stderr; they also write it to files."""
    sys.stderr.flush()
    kept = os.dup(2)
    nothing = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nothing, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nothing)


def _handlers() -> dict[int, Any]:
    """The handlers of signals; none outside of the main thread, where they cannot be set."""
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}


def _restore(handlers: dict[int, Any]) -> None:
    for number, handler in handlers.items():
        signal.signal(number, handler)


def _folder() -> Path:
    """A new temporary folder for Ray; those of killed processes are removed."""
    parent = Path(tempfile.gettempdir())
    if len(str(parent)) + len(PREFIX) + 18 > MAX_FOLDER and Path("/tmp").is_dir():
        parent = Path("/tmp")
    for old in parent.glob(f"{PREFIX}*"):
        owner = old.name.removeprefix(PREFIX).partition("-")[0]
        if owner.isdigit() and not _is_alive(int(owner)) and not old.is_symlink():
            shutil.rmtree(old, ignore_errors=True)
    return Path(tempfile.mkdtemp(prefix=f"{PREFIX}{os.getpid()}-", dir=parent))


def _is_alive(process: int) -> bool:
    with suppress(PermissionError):
        try:
            os.kill(process, 0)
        except ProcessLookupError:
            return False
    return True
