"""The messages of the Open Inference Protocol over gRPC, from ``open_inference.desc``.

They are in a pool of their own: clients such as tritonclient register messages with the same names
in the default pool of the process, and protobuf refuses a second definition.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

SERVICE = "inference.GRPCInferenceService"


def _load() -> tuple[dict[str, Any], dict[str, tuple[str, str]]]:
    content = (Path(__file__).parent / "open_inference.desc").read_bytes()
    pool = descriptor_pool.DescriptorPool()
    names = []
    for file in descriptor_pb2.FileDescriptorSet.FromString(content).file:
        pool.AddSerializedFile(file.SerializeToString())
        names.append(file.name)
    found = message_factory.GetMessageClassesForFiles(names, pool)
    calls = {
        method.name: (method.input_type.name, method.output_type.name)
        for method in pool.FindServiceByName(SERVICE).methods
    }
    return {name.removeprefix("inference."): kind for name, kind in found.items()}, calls


MESSAGES, CALLS = _load()
"""Message classes by name without the package, and (request, response) names by call."""
