"""Every error names a fix: the house rule "what, why and how to fix it"."""

from __future__ import annotations

import ast
from pathlib import Path

import eomt_deploy
from eomt_deploy import errors

PACKAGE = Path(eomt_deploy.__file__).parent
NAMES = {
    name
    for name, value in vars(errors).items()
    if isinstance(value, type) and issubclass(value, errors.EomtDeployError)
}


def without_fix():
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name in NAMES and not any(word.arg in ("fix", None) for word in node.keywords):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}"


def test_every_error_has_a_fix():
    found = list(without_fix())
    assert not found, "errors without fix=: " + ", ".join(found)
