"""`inspect` for sites."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

from eomt_deploy.backends.inspection import Inspection, model_rows, origin_rows
from eomt_deploy.backends.web.files import read_site
from eomt_deploy.errors import ModelFileError
from eomt_deploy.spec import ModelSpec


def inspect(path: Path) -> Inspection:
    """Inspect a site from its ``index.html``.

    Raises:
        ModelFileError: it is not a site that eomt-deploy wrote, or files are missing.
    """
    site = read_site(path.parent)
    if site is None:
        raise ModelFileError(
            f"{path.parent} is not a site that eomt-deploy wrote: it has no valid site.json.",
            fix="Build it: eomt-deploy build m.onnx -o site/",
        )
    try:
        spec = ModelSpec.from_data(site["spec"])
        files = {path.parent / entry["path"]: int(entry["bytes"]) for entry in site["files"]}
        version = str(site["onnxruntime_web"])
    except (KeyError, TypeError, ValueError) as error:
        raise ModelFileError(
            f"{path.parent / 'site.json'} is damaged.", fix="Build the site again."
        ) from error
    for file, size in files.items():
        if not file.is_file() or file.stat().st_size != size:
            raise ModelFileError(
                f"{file} is missing or damaged.", fix="Copy the site again, or build it again."
            )
    total = sum(files.values())
    rows = model_rows(spec) | {
        "site": f"{len(files)} files, {total / 1e6:.1f} MB",
        "runs with": f"ONNX Runtime Web {version}, in browsers",
        **origin_rows(spec),
    }
    data = {"path": str(path), "spec": asdict(spec), "bytes": total, "onnxruntime_web": version}
    return Inspection(data, rows)
