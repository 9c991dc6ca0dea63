"""Sphinx configuration of the documentation: plain Markdown, built by `make docs`."""

from __future__ import annotations

import re
import sys
from pathlib import Path

from sphinx.application import Sphinx

sys.path.insert(0, str(Path(__file__).parents[1]))

from eomt_deploy import __version__

project = "eomt-deploy"
author = "The eomt-deploy authors"
copyright = f"2026, {author}"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
exclude_patterns = ["_build", "pictures"]
myst_enable_extensions = ["colon_fence"]
myst_heading_anchors = 3
nitpicky = False

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_default_options = {"members": True, "show-inheritance": True}
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = f"eomt-deploy {__version__}"
html_show_sphinx = False
html_copy_source = False
html_theme_options = {"source_edit_link": ""}

OUTSIDE = re.compile(r"\]\(((?:\.\./)+(?:benchmarks|examples)/[^)#]+\.md)\)")
"""A link to a Markdown file outside this folder. It works on GitHub, but the file is not a page of
this documentation."""


def setup(app: Sphinx) -> None:
    """Turn links to Markdown files outside this folder into downloads."""

    def rewrite(_app: Sphinx, _name: str, source: list[str]) -> None:
        source[0] = OUTSIDE.sub(r"](path:\1)", source[0])

    app.connect("source-read", rewrite)
