"""Web addresses: recognise them, and remove secrets before they are shown or stored."""

from __future__ import annotations

import re

PREFIXES = ("https://", "http://")
STREAM_PREFIXES = (
    "rtsp://", "rtsps://", "rtmp://", "rtmps://", "rtp://", "udp://", "tcp://", "srt://",
)  # fmt: skip


def is_address(text: str) -> bool:
    return text.lower().startswith(PREFIXES)


def without_secrets(text: str) -> str:
    """Remove user, password, query and fragment from an address; other text stays unchanged."""
    if not text.lower().startswith((*PREFIXES, *STREAM_PREFIXES)):
        return text
    scheme, _, rest = text.partition("://")
    authority, path = _parts(rest)
    if "@" in path and re.search(r":(?!\d*$)[^@]*$", authority):
        # A password that contains "/" ends the authority too early.
        authority, path = _parts(rest.rpartition("@")[2])
    host = authority.rpartition("@")[2]
    # A password that contains "?" ends the authority too early. Then the text after the colon is
    # not a port but the start of that password.
    host = re.sub(r"(?<!\[):(?!\d*$)[^\[\]]*$", "", host) if "[" not in host else host
    return f"{scheme}://{host}{path}"


def _parts(rest: str) -> tuple[str, str]:
    """Authority and path of an address without its scheme; query and fragment are left out."""
    path_at = re.search(r"[/?#]", rest)
    authority = rest[: path_at.start()] if path_at else rest
    return authority, re.split(r"[?#]", rest[len(authority) :], maxsplit=1)[0]


def scrubbed(text: str) -> str:
    """Remove the secrets from every address in the error message of a library."""
    text = re.sub(
        r"(?:https?|rtsps?|rtmps?)://[^\s'\"<>]+",
        lambda match: without_secrets(match[0]),
        text,
        flags=re.I,
    )
    return re.sub(r"\?\S*", "", text)
