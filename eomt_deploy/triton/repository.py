"""Write models into a Triton model repository.

```
repo/
  NAME/config.pbtxt
  NAME/1/model.py, eomt-deploy.json, model.onnx
  NAME/warmup/eomt-deploy-image
```
"""

from __future__ import annotations

import io
import os
import shutil
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from eomt_deploy.errors import EomtDeployError, OutputError, UsageError
from eomt_deploy.files import check_writable, staging_folder, unwritable, write_atomically
from eomt_deploy.outputs import not_ours
from eomt_deploy.triton import model_config as configs
from eomt_deploy.triton.options import TritonConfig
from eomt_deploy.triton.settings import SETTINGS_NAME, Role, Settings
from eomt_deploy.triton.source import Source, check_options, read_source

CONFIG_NAME = "config.pbtxt"
CODE_NAME = "model.py"
CODE = b'''"""Written by eomt-deploy. The code is in the installed package of that name."""

from eomt_deploy.triton.server_model import TritonPythonModel

__all__ = ["TritonPythonModel"]
'''
PYTHON_ROLES = ("segment", "bls", "preprocess", "postprocess")


@dataclass(frozen=True)
class Model:
    """One model of the repository, in one version.

    Attributes:
        name: name of its folder.
        config: content of config.pbtxt.
        settings: content of ``eomt-deploy.json``, without the sizes of the files.
        files: files of the version folder, by name.
        warm_up: whether config.pbtxt names the small image.
    """

    name: str
    config: str
    settings: Settings
    files: Mapping[str, Path | bytes] = field(default_factory=dict)
    warm_up: bool = False


def write_repository(
    options: TritonConfig, progress: Callable[[str], None] = lambda _: None
) -> list[str]:
    """Write the models, after everything was checked.

    A version folder is complete before it gets its name, and other versions are not touched.

    Args:
        progress: receives the current step.

    Returns:
        sentences for the user.

    Raises:
        ModelFileError: a model file is missing, damaged, or was not written by eomt-deploy.
        UsageError: the form or the version does not fit the model or the repository.
        OutputError: a file would be replaced that eomt-deploy did not write.
    """
    lines: list[str] = []
    planned: list[Model] = []
    sources: list[Source] = []
    for path in options.models:
        progress(f"reading {path.name}")
        source = read_source(path)
        check_options(source, options)
        sources.append(source)
        planned += plan(options.model_name(path), source, options)
        lines += _batch_note(source, options)
    names = [model.name for model in planned]
    for name in names:
        if names.count(name) > 1:
            raise UsageError(
                f"Two of the models would be written to {options.output / name}.",
                fix="Write them in two commands, with --name.",
            )
    for model in planned:
        check_writable(options.output / model.name / CONFIG_NAME)
        lines += _check_place(model, sources, options)
    for model in planned:
        progress(f"writing {model.name}")
        _write(model, options.output / model.name, str(options.version))
        lines.append(f"wrote {options.output / model.name / str(options.version)}")
    return lines + [remark for source in sources for remark in source.remarks]


def plan(name: str, source: Source, options: TritonConfig) -> list[Model]:
    """The models of one form. The one that clients call is the last, so that the others exist."""

    def settings(role: Role, **values: object) -> Settings:
        batch = min(source.batch[0], largest), largest
        common = {"threads": options.threads, "max_pixels": options.max_pixels}
        return Settings(role, source.spec, batch=batch, **common | values)  # type: ignore[arg-type]

    largest = configs.network_batch(source, options)
    if options.form == "python":
        own = settings(
            "segment",
            model=next(iter(source.files)),
            backend=options.backend,
            device=options.device,
        )
        config = configs.segment_config(name, source, options)
        return [Model(name, config, own, source.files, warm_up=True)]
    network = Model(
        name + configs.NETWORK,
        configs.network_config(name, source, options),
        settings("network"),
        source.native_files(),
    )
    if options.form == "bls":
        own = settings("bls", network=network.name)
        return [network, Model(name, configs.bls_config(name, options), own)]
    return [
        network,
        Model(
            name + configs.PREPROCESS,
            configs.preprocess_config(name, source, options),
            settings("preprocess"),
            warm_up=True,
        ),
        Model(
            name + configs.POSTPROCESS,
            configs.postprocess_config(name, source, options),
            settings("postprocess"),
        ),
        Model(name, configs.ensemble_config(name), settings("ensemble")),
    ]


def _batch_note(source: Source, options: TritonConfig) -> list[str]:
    """A sentence if the network does not take the requested maximum batch."""
    largest = configs.network_batch(source, options)
    if options.form == "python" or options.max_batch in (None, largest):
        return []
    kind = "exactly" if source.is_fixed else "at most"
    return [
        f"{source.path.name} takes {kind} {largest} inputs in a call, which replaces --max-batch "
        f"{options.max_batch}"
    ]


def _check_place(model: Model, sources: list[Source], options: TritonConfig) -> list[str]:
    """Check that a model can be written without damage to other files or versions.

    Returns:
        sentences for the user, if settings of other versions change.
    """
    folder = options.output / model.name
    version = folder / str(options.version)
    if version.exists():
        inside = [
            path for source in sources for path in source.files.values()
            if Path(os.path.realpath(version)) in Path(os.path.realpath(path)).parents
        ]  # fmt: skip
        if inside:
            raise UsageError(
                f"{version} contains {inside[0].name}, which is an input of this command.",
                why="An input is never replaced, not even with --overwrite.",
                fix="Pass another --version, or the original model file.",
            )
        if not options.overwrite and not is_our_version(version):
            raise not_ours(version, f"--version {options.version}")
    others = _other_versions(folder, options.version)
    if others and options.form == "ensemble":
        raise UsageError(
            f"{folder} has the version {others[0]}, and an ensemble cannot have several.",
            why="All versions of an ensemble share one config.pbtxt, and therefore the versions of "
            "their steps.",
            fix=f"Use --form bls or python, another --name, or --version {others[0]}, which "
            "replaces it.",
        )
    config = folder / CONFIG_NAME
    if not config.exists():
        return []
    try:
        old = config.read_text(encoding="utf-8")
    except (OSError, ValueError) as error:
        raise OutputError(
            f"{config} cannot be read: {error}.", fix="Choose another folder with -o."
        ) from error
    if old == model.config:
        return []
    if not options.overwrite and not configs.is_unchanged(old):
        raise OutputError(
            f"{config} would be replaced, but it was changed since eomt-deploy wrote it, or "
            "eomt-deploy did not write it.",
            fix="Move it away, pass --overwrite, or choose another folder with -o.",
        )
    if not others:
        return []
    if configs.contract_of(old) != configs.contract_of(model.config):
        raise UsageError(
            f"Version {options.version} of {model.name} has other inputs, outputs or another form "
            f"than version {others[0]}.",
            why="Triton has one config.pbtxt for all versions of a model.",
            fix="Pass another --name, use --form python (all models have the same config.pbtxt), "
            f"or remove {folder}.",
        )
    return [f"{config} changes; it also applies to version {', '.join(map(str, others))}"]


def _other_versions(folder: Path, version: int) -> list[int]:
    try:
        names = [entry.name for entry in folder.iterdir() if entry.is_dir()]
    except OSError:
        return []
    return sorted(int(n) for n in names if n.isascii() and n.isdigit() and int(n) != version)


def is_our_version(folder: Path) -> bool:
    """Whether a version folder contains only files that eomt-deploy wrote, unchanged in size."""
    try:
        known = Settings.read(folder).files
        for path in folder.rglob("*"):
            name = path.relative_to(folder)
            if not path.is_file() or name.as_posix() == SETTINGS_NAME:
                continue
            # Python compiles model.py when Triton loads it.
            if name.parts[0] != "__pycache__" and known.get(name.as_posix()) != path.stat().st_size:
                return False
    except (EomtDeployError, OSError):
        return False
    return True


def _write(model: Model, folder: Path, version: str) -> None:
    files: dict[str, Path | bytes] = dict(model.files)
    if model.settings.role in PYTHON_ROLES:
        files[CODE_NAME] = CODE
    target = folder / version
    with staging_folder(target) as staging:
        try:
            _fill(staging / "new", model.settings, files)
            _exchange(staging / "new", target, staging / "old")
        except OSError as error:
            raise unwritable(target, error) from error
    if model.warm_up:
        write_atomically(folder / "warmup" / configs.WARM_UP_FILE, warm_up_image())
    write_atomically(folder / CONFIG_NAME, model.config.encode())


def _fill(folder: Path, settings: Settings, files: Mapping[str, Path | bytes]) -> None:
    folder.mkdir()
    sizes = {}
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(content, bytes):
            path.write_bytes(content)
        else:
            shutil.copyfile(os.path.realpath(content), path)
        sizes[name] = path.stat().st_size
    text = replace(settings, files=sizes).to_json()
    (folder / SETTINGS_NAME).write_text(f"{text}\n", encoding="utf-8")


def _exchange(new: Path, target: Path, old: Path) -> None:
    """Move ``new`` to ``target``; an earlier ``target`` stays if that fails."""
    if not target.exists():
        os.replace(new, target)
        return
    os.replace(target, old)
    try:
        os.replace(new, target)
    except OSError:
        os.replace(old, target)
        raise


def warm_up_image() -> bytes:
    """A small JPEG as Triton reads a string from a file: its length in 4 bytes, then the bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.linear_gradient("L").resize((96, 64)).convert("RGB").save(buffer, "JPEG")
    content = buffer.getvalue()
    return struct.pack("<I", len(content)) + content
