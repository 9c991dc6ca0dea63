"""The config.pbtxt of each model of a repository.

Triton has one config.pbtxt for all versions of a model. Its first part is the contract: what all
versions must share. Its second part can change with each version that is added.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.files import GENERATOR
from eomt_deploy.spec import MAX_BATCH, ModelSpec
from eomt_deploy.triton.options import TritonConfig
from eomt_deploy.triton.pbtxt import Message, Word, to_text
from eomt_deploy.triton.source import TENSORRT, Source

IMAGE, RESULT, SIZES = "image", "result", "sizes"
"""Encoded images, results as JSON, and (H, W) of the images: int32 [B, 2]."""
SHARED = "# The part below may differ between versions: it then applies to all of them."
MARKER = "# Written by "
NETWORK, PREPROCESS, POSTPROCESS = "_network", "_preprocess", "_postprocess"
"""Suffixes of the names of the models inside a form."""
WARM_UP_FILE = "eomt-deploy-image"
LARGEST_GRAPHS = 8
"""Maximum number of batch sizes for which a CUDA graph is captured: each needs memory."""


def config_file(contract: Message, settings: Message) -> str:
    """The text of a config.pbtxt: a marker with a checksum, the contract, and the settings."""
    text = to_text(contract)
    if settings:
        text += f"{SHARED}\n{to_text(settings)}"
    return f"{_marker(text)}\n{text}"


def is_unchanged(text: str) -> bool:
    """Whether a config.pbtxt is as eomt-deploy wrote it."""
    first, _, rest = text.partition("\n")
    return first.startswith(MARKER) and first.split()[-1] == _checksum(rest)


def contract_of(text: str) -> str:
    """The part of a config.pbtxt that all versions share."""
    return text.partition("\n")[2].partition(SHARED)[0]


def _marker(text: str) -> str:
    return f"{MARKER}{GENERATOR}; SHA-256 of the lines below: {_checksum(text)}"


def _checksum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def segment_config(name: str, source: Source, options: TritonConfig) -> str:
    """The Python model that runs everything (form ``python``).

    The contract contains nothing of the network, so any models can be versions of each other.
    """
    contract = {"name": name, "backend": "python", **_ends([1])}
    settings = {
        "max_batch_size": options.batch_limit,
        "dynamic_batching": _batching(options),
        **_instances(options.python_instances, _device(source.devices, options)),
        **_all_versions(),
        "model_warmup": [_image_warm_up([1])],
    }
    return config_file(contract, settings)


def bls_config(name: str, options: TritonConfig) -> str:
    """The Python model that calls the network (form ``bls``).

    It does not batch: Triton combines the calls of all instances in the network's queue.
    """
    contract = {"name": name, "backend": "python", "max_batch_size": 0, **_ends([-1, 1])}
    settings = {**_instances(options.python_instances, "cpu"), **_all_versions()}
    return config_file(contract, settings)


def ensemble_config(name: str) -> str:
    """The ensemble of preprocessing, network and postprocessing."""
    steps = (
        (PREPROCESS, (IMAGE,), (INPUT, SIZES)),
        (NETWORK, (INPUT,), OUTPUTS),
        (POSTPROCESS, (*OUTPUTS, SIZES), (RESULT,)),
    )
    scheduling = [
        {
            "model_name": name + suffix,
            "model_version": -1,
            "input_map": [{"key": key, "value": key} for key in inputs],
            "output_map": [{"key": key, "value": key} for key in outputs],
        }
        for suffix, inputs, outputs in steps
    ]
    contract = {"name": name, "platform": "ensemble", "max_batch_size": 0, **_ends([-1, 1])}
    return config_file({**contract, "ensemble_scheduling": {"step": scheduling}}, {})


def preprocess_config(name: str, source: Source, options: TritonConfig) -> str:
    """The first model of an ensemble: encoded images to network inputs.

    The number of inputs depends on the images, which only a model without Triton's batching can
    express.
    """
    contract = {
        "name": name + PREPROCESS,
        "backend": "python",
        "max_batch_size": 0,
        "input": [_tensor(IMAGE, "STRING", [-1, 1])],
        "output": [_images(source.spec, -1), _tensor(SIZES, "INT32", [-1, 2])],
    }
    settings = {
        **_instances(options.python_instances, "cpu"),
        "model_warmup": [_image_warm_up([1, 1])],
    }
    return config_file(contract, settings)


def postprocess_config(name: str, source: Source, options: TritonConfig) -> str:
    """The last model of an ensemble: logits to results."""
    contract = {
        "name": name + POSTPROCESS,
        "backend": "python",
        "max_batch_size": 0,
        "input": [*_logits(source.spec, -1), _tensor(SIZES, "INT32", [-1, 2])],
        "output": [_tensor(RESULT, "STRING", [-1, 1])],
    }
    return config_file(contract, _instances(options.python_instances, "cpu"))


def network_config(name: str, source: Source, options: TritonConfig) -> str:
    """The network itself, run by one of Triton's backends.

    A network with a fixed batch has the batch in its shapes, since ``max_batch_size`` would also
    permit smaller batches, which it does not take.
    """
    assert source.native is not None
    spec, native = source.spec, source.native
    largest = network_batch(source, options)
    fixed = [source.batch[0]] if source.is_fixed else []
    contract: dict[str, Any] = {
        "name": name + NETWORK,
        native.field: native.value,
        "default_model_filename": native.file,
        "max_batch_size": 0 if fixed else largest,
        "input": [_images(spec, *fixed)],
        "output": _logits(spec, *fixed),
    }
    settings: dict[str, Any] = {} if fixed else {"dynamic_batching": _batching(options)}
    settings |= {**_instances(1, _device(native.kinds, options)), **_all_versions()}
    if native is TENSORRT:
        settings["optimization"] = {"cuda": _graphs(source, largest, fixed)}
    batches = [1] if fixed else sorted({source.batch[0], largest})
    settings["model_warmup"] = [_network_warm_up(spec, batch, fixed) for batch in batches]
    return config_file(contract, settings)


def network_batch(source: Source, options: TritonConfig) -> int:
    """Maximum number of inputs in one call of the network."""
    minimum, maximum = source.batch
    return (
        maximum
        if maximum == minimum
        else max(minimum, min(options.batch_limit, maximum or MAX_BATCH))
    )


def _tensor(name: str, kind: str, dims: list[int]) -> Message:
    return {"name": name, "data_type": Word(f"TYPE_{kind}"), "dims": dims}


def _ends(dims: list[int]) -> Message:
    """Input and output of the model that clients call: one image and one result per element."""
    return {
        "input": [_tensor(IMAGE, "STRING", dims)],
        "output": [_tensor(RESULT, "STRING", dims)],
    }


def _images(spec: ModelSpec, *batch: int) -> Message:
    return _tensor(INPUT, "UINT8", [*batch, *spec.image_size, 3])


def _logits(spec: ModelSpec, *batch: int) -> list[Message]:
    classes = [*batch, spec.num_queries, len(spec.classes) + 1]
    masks = [*batch, spec.num_queries, *spec.mask_size]
    return [_tensor(OUTPUTS[0], "FP32", classes), _tensor(OUTPUTS[1], "FP32", masks)]


def _batching(options: TritonConfig) -> Message:
    delay = options.max_queue_delay_us
    return {"max_queue_delay_microseconds": delay} if delay else {}


def _device(able: tuple[str, ...], options: TritonConfig) -> str | None:
    """The requested device, or the only one that runs the model; None leaves it to Triton."""
    return options.device or (able[0] if len(able) == 1 else None)


def _instances(count: int, device: str | None) -> Message:
    """Instances; without a device, Triton takes every GPU, or the CPU if there is none."""
    kind: Mapping[str, Any] = {}
    if device is not None:
        kind = {"kind": Word("KIND_CPU" if device == "cpu" else "KIND_GPU")}
    return {"instance_group": [{"count": count, **kind}]}


def _all_versions() -> Message:
    """Serve all versions; Triton's default is only the newest."""
    return {"version_policy": {"all": {}}}


def _image_warm_up(dims: list[int]) -> Message:
    """One call with the small image in ``warmup/``."""
    image = {"data_type": Word("TYPE_STRING"), "dims": dims, "input_data_file": WARM_UP_FILE}
    return {
        "name": "one image",
        "batch_size": 1,
        "inputs": [{"key": IMAGE, "value": image}],
        "count": 2,
    }


def _network_warm_up(spec: ModelSpec, batch: int, fixed: list[int]) -> Message:
    image = _images(spec, *fixed)
    value = {"data_type": image["data_type"], "dims": image["dims"], "zero_data": True}
    return {
        "name": f"batch of {fixed[0] if fixed else batch}",
        "batch_size": batch,
        "inputs": [{"key": INPUT, "value": value}],
        "count": 2,
    }


def _graphs(source: Source, largest: int, fixed: list[int]) -> Message:
    """CUDA graphs for the usual batch sizes; other sizes run without a graph."""
    dims = _images(source.spec, *fixed)["dims"]
    if fixed:
        sizes = [0]  # the batch is part of the shape
    else:
        powers = [2**i for i in range(17) if source.batch[0] <= 2**i <= largest]
        sizes = sorted({*powers, source.batch[0], largest})[-LARGEST_GRAPHS:]
    inputs = [{"key": INPUT, "value": {"dim": dims}}]
    return {"graphs": True, "graph_spec": [{"batch_size": s, "input": inputs} for s in sizes]}
