"""The certificate of an OpenVINO model, which is in its .xml."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from xml.sax.saxutils import quoteattr

from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import ModelFileError, UsageError
from eomt_deploy.files import through_links, write_atomically
from eomt_deploy.model_file import CERTIFICATE_KEY, read_xml
from eomt_deploy.sidecar import sha256

PLACE = re.compile(
    rb"(<eomt_deploy>)(\s*)(?:<%b value=\"[^\"]*\" ?/>\s*)?" % CERTIFICATE_KEY.encode()
)
"""Start of our values in an .xml. The values of other elements have no unescaped "<"."""


class OpenVinoFile:
    """An ``.xml`` file, see :class:`eomt_deploy.backends.building.BuiltFile`."""

    def __init__(self, path: Path) -> None:
        self._path = through_links(path)
        facts = read_xml(path)
        self._arithmetic = facts.arithmetic
        self.onnx, self.onnx_sha256 = facts.onnx, facts.onnx_sha256
        self.certificate = facts.certificate

    @property
    def files(self) -> tuple[Path, ...]:
        """All files of the model."""
        return self._path, self._path.with_suffix(".bin")

    def check_place(self, arithmetic: str | None) -> None:
        """Check that a certificate for this arithmetic can be stored.

        Raises:
            UsageError: the file computes in another arithmetic by default.
            ModelFileError: the file has no place for it.
        """
        if self._arithmetic not in (None, arithmetic):
            raise UsageError(
                f"A certificate for {arithmetic} cannot be stored in {self._path}, which is built "
                f"for {self._arithmetic}.",
                fix="Leave --save out, or build the file with "
                f"--arithmetic {arithmetic} on this machine.",
            )
        if not PLACE.search(self._path.read_bytes()):
            raise ModelFileError(
                f"{self._path} has no place for a certificate.",
                fix="Build it with this version: eomt-deploy build",
            )

    def save(self, certificate: Certificate) -> None:
        """Write a certificate into the .xml, which otherwise stays as it is."""
        content = self._path.read_bytes()
        bound = replace(certificate, weights_sha256=sha256(self._path.with_suffix(".bin")))
        value = quoteattr(bound.to_json(), {'"': "&quot;"})
        element = f"<{CERTIFICATE_KEY} value={value} />".encode()
        changed = PLACE.sub(lambda m: m[1] + m[2] + element + m[2], content, count=1)
        write_atomically(self._path, changed)

    def rebuild(self, onnx: Path, output: Path, arithmetic: str | None) -> OpenVinoConfig:
        """The configuration that builds another model with the same settings, without a check."""
        return OpenVinoConfig(onnx, output, arithmetic=arithmetic or "fp32", check=False)
