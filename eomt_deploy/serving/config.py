"""The configuration of a server."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from eomt_deploy.errors import UsageError
from eomt_deploy.serving.inference import NAME
from eomt_deploy.serving.pool import PoolOptions
from eomt_deploy.serving.worker import WorkerOptions

MIN_TOKEN = 16
"""Minimum number of characters of a token: 16 hexadecimal digits are 64 bits."""
LOCAL_NAMES = ("localhost",)


@dataclass(frozen=True)
class Limits:
    """What one request may use.

    Attributes:
        body_bytes: maximum size of a request.
        memory_bytes: maximum size of all requests that are held at the same time.
        body_seconds: maximum time for the body of a request to arrive.
        header_seconds: maximum time for its header to arrive.
        idle_seconds: time after which a connection without requests is closed.
        connections: maximum number of open connections.
        calls: maximum number of gRPC calls at the same time; each can hold ``body_bytes``.
    """

    body_bytes: int = 32 << 20
    memory_bytes: int = 512 << 20
    body_seconds: float = 30.0
    header_seconds: float = 10.0
    idle_seconds: float = 15.0
    connections: int = 4096
    calls: int = 128


@dataclass(frozen=True)
class ServeConfig:
    """Everything that `eomt-deploy serve` needs.

    Attributes:
        models: model files by name.
        host: address to listen on.
        port: port for HTTP; 0 takes a free one.
        grpc_port: port for gRPC; 0 takes a free one, None switches gRPC off.
        token: secret that requests must send; None asks for none.
        drain_seconds: time for the requests in the queue after SIGTERM.
        log: ``"json"``, ``"text"`` or ``"off"``.
        pool: how requests are processed.
        worker: how workers open the model files.
        limits: what one request may use.
    """

    models: dict[str, Path]
    host: str = "127.0.0.1"
    port: int = 8000
    grpc_port: int | None = 8001
    token: str | None = None
    drain_seconds: float = 30.0
    log: str = "text"
    pool: PoolOptions = field(default_factory=PoolOptions)
    worker: WorkerOptions = field(default_factory=WorkerOptions)
    limits: Limits = field(default_factory=Limits)


def named_models(arguments: Sequence[str]) -> dict[str, Path]:
    """Model files by name, from arguments such as ``m.onnx`` or ``street=m.onnx``.

    Raises:
        UsageError: a name is not valid, or two models have the same name.
    """
    found: dict[str, Path] = {}
    for argument in arguments:
        name, equals, rest = argument.partition("=")
        if not equals or not NAME.fullmatch(name) or Path(argument).exists():
            rest = argument
            name = re.sub(r"[^A-Za-z0-9_.-]+", "-", Path(argument).stem).strip("-.")[:100]
        if not NAME.fullmatch(name):
            raise UsageError(
                f"The file name of {argument} cannot be used as the name of a model.",
                fix=f"Write NAME={argument}, with letters, digits, '_', '.' and '-' in NAME.",
            )
        if name in found:
            raise UsageError(
                f"Two models have the name {name}: {found[name]} and {rest}.",
                fix=f"Write another name before one of them, e.g. second={rest}.",
            )
        found[name] = Path(rest)
    return found


def is_local(host: str) -> bool:
    """Whether only this machine can reach an address."""
    if host.lower() in LOCAL_NAMES:
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def check_access(host: str, token: str | None, *, no_auth: bool) -> None:
    """Refuse to open a server to a network without a token.

    Raises:
        UsageError: other machines could use the server without a token, or the token is weak.
    """
    if token is not None and no_auth:
        raise UsageError("--token and --no-auth conflict.", fix="Leave one of them out.")
    if token is not None and (len(token) < MIN_TOKEN or not token.isascii() or " " in token):
        raise UsageError(
            f"The token must have at least {MIN_TOKEN} ASCII characters without spaces.",
            fix="Generate one, e.g. with `openssl rand -hex 32`.",
        )
    if token is None and not no_auth and not is_local(host):
        raise UsageError(
            f"With --host {host}, other machines can use this server, and there is no token.",
            fix="Set EOMT_DEPLOY_TOKEN (or --token) to a secret, or pass --no-auth if everyone "
            "who reaches this address may use it.",
        )
