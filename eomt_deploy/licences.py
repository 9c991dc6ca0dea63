"""Licences of weights: short names for tables, and what users should know before they use them.

The catalog states the licence of each checkpoint (`licence` in `export/*.toml`). This is not legal
advice: only the text of a licence counts.
"""

from __future__ import annotations

PERMISSIVE = ("MIT", "Apache-2.0", "BSD-3-Clause", "CC0")
DINOV3 = "DINOv3 License"
AGPL = "AGPL-3.0"
LINKS = {
    AGPL: "https://www.gnu.org/licenses/agpl-3.0.html",
    DINOV3: "https://ai.meta.com/resources/models-and-libraries/dinov3-license",
}
KINDS = {
    AGPL: "a copyleft licence, or a commercial licence of the authors",
    DINOV3: "Meta's own licence",
}


def parts(licence: str, base_weights: str = "") -> list[str]:
    """The licences of all weights that a model is made of.

    Args:
        licence: as the catalog states it, separated by commas.
        base_weights: DINOv3 weights that the checkpoint is the difference to, if any.
    """
    found = [part.strip() for part in licence.split(",") if part.strip()]
    return found if not base_weights or DINOV3 in found else [*found, DINOV3]


def short(licences: list[str]) -> str:
    """The licences as they fit into a table, e.g. ``AGPL-3.0 + DINOv3``."""
    names = (AGPL if AGPL in part else part.removesuffix(" License") for part in licences)
    return " + ".join(names)


def notes(name: str, licences: list[str]) -> list[str]:
    """A warning for each licence that restricts how a model may be used or distributed."""
    return [_note(name, part) for part in licences if part not in PERMISSIVE]


def _note(name: str, licence: str) -> str:
    if AGPL in licence:
        return (
            f"Licence of {name}: {licence}. In short, AGPL-3.0 requires the source code of a work "
            "that contains the model if you distribute it or offer it over a network. Read "
            f"{LINKS[AGPL]}, or ask the authors about a commercial licence."
        )
    if licence == DINOV3:
        return (
            f"Licence of {name}: {licence} of Meta, which has its own conditions for use and "
            f"distribution. Read {LINKS[DINOV3]}"
        )
    return (
        f"Licence of {name}: {licence}. It may restrict use and distribution. Read it before you "
        "use the model."
    )
