"""Web addresses: what is one, and how one is shown without the secrets in it."""

from __future__ import annotations

import re

PREFIXES = ("https://", "http://")


def is_address(text: str) -> bool:
    return text.lower().startswith(PREFIXES)


def without_secrets(text: str) -> str:
    """An address without user, password, query and fragment: what may be printed and stored.
    Anything else stays as it is."""
    if not is_address(text):
        return text
    scheme, _, rest = text.partition("://")
    authority, path = re.fullmatch(r"([^/?#]*)([^?#]*).*", rest, re.DOTALL).groups()  # type: ignore[union-attr]
    host = authority.rpartition("@")[2]
    # A password with a "?" ends the host too early: text that is not a port may be part of it.
    host = re.sub(r"(?<!\[):(?!\d*$)[^\[\]]*$", "", host) if "[" not in host else host
    return f"{scheme}://{host}{path}"


def scrubbed(text: str) -> str:
    """The message of a library, in which every address is without its secrets."""
    text = re.sub(
        r"https?://[^\s'\"<>]+", lambda match: without_secrets(match[0]), text, flags=re.I
    )
    return re.sub(r"\?\S*", "", text)
