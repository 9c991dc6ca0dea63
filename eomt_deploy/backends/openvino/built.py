"""The certificate of an OpenVINO model, which is in its .xml."""

from __future__ import annotations

import re
from pathlib import Path
from xml.sax.saxutils import quoteattr

from eomt_deploy.backends.openvino.config import OpenVinoConfig
from eomt_deploy.certificate import Certificate
from eomt_deploy.errors import ModelFileError
from eomt_deploy.files import through_links, write_atomically
from eomt_deploy.model_file import CERTIFICATE_KEY, read_xml

PLACE = re.compile(rf"(<eomt_deploy>)(\s*)(?:<{CERTIFICATE_KEY} value=\"[^\"]*\" ?/>\s*)?")
"""Start of our values in an .xml. The values of other elements have no unescaped "<"."""


class OpenVinoFile:
    """An ``.xml`` file, see :class:`eomt_deploy.backends.building.BuiltFile`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        facts = read_xml(path)
        self._arithmetic = facts.arithmetic
        self.onnx, self.onnx_sha256 = facts.onnx, facts.onnx_sha256
        self.certificate = facts.certificate

    def save(self, certificate: Certificate) -> None:
        """Write a certificate into the .xml, which otherwise stays as it is."""
        content = self._path.read_text(encoding="utf-8")
        value = quoteattr(certificate.to_json(), {'"': "&quot;"})
        element = f"<{CERTIFICATE_KEY} value={value} />"
        changed, count = PLACE.subn(lambda m: f"{m[1]}{m[2]}{element}{m[2]}", content, count=1)
        if not count:
            raise ModelFileError(
                f"{self._path} has no place for a certificate.",
                fix="Build it with this version: eomt-deploy build",
            )
        write_atomically(through_links(self._path), changed.encode())

    def rebuild(self, onnx: Path, output: Path) -> OpenVinoConfig:
        """The configuration that builds another model with the same settings, without a check."""
        return OpenVinoConfig(onnx, output, arithmetic=self._arithmetic or "fp32", check=False)
