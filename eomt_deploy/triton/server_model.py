"""The Python code that runs inside Triton: ``model.py`` of a repository imports it.

``triton_python_backend_utils`` exists only in Triton's Python processes. It is passed to the roles
as ``server``.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np

from eomt_deploy.contract import INPUT, OUTPUTS
from eomt_deploy.errors import DeviceError, EomtDeployError, ModelFileError
from eomt_deploy.processing import Geometry, Processor
from eomt_deploy.processing.geometry import plan
from eomt_deploy.segmenter import Segmenter
from eomt_deploy.sources import load_image
from eomt_deploy.triton.calls import (
    Call,
    Logits,
    Thresholds,
    as_text,
    batches,
    check_numpy,
    group_equal,
    read_call,
    read_thresholds,
    select_gpu,
    too_many,
)
from eomt_deploy.triton.model_config import IMAGE, RESULT, SIZES
from eomt_deploy.triton.settings import Settings


class TritonPythonModel:
    """The class that Triton creates in each process of a Python model."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the model of the version folder."""
        server = import_module("triton_python_backend_utils")
        try:
            warning = check_numpy(np.__version__, os.environ.get("NVIDIA_TRITON_SERVER_VERSION"))
            if warning:
                server.Logger.log_warn(warning)
            if args["model_instance_kind"] == "GPU":
                select_gpu(int(args["model_instance_device_id"]))
            folder = Path(args["model_repository"]) / args["model_version"]
            settings = Settings.read(folder)
            if settings.role not in ROLES:
                raise ModelFileError(
                    f"{folder} is not a Python model but the role {settings.role}.",
                    fix="Write the repository again: eomt-deploy triton",
                )
            role = ROLES[settings.role]
            self._role = role(settings, folder, int(args["model_version"]), server)
        except EomtDeployError as error:
            raise server.TritonModelException(as_text(error)) from error

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request, in their order."""
        return self._role.execute(requests)

    def finalize(self) -> None:
        """Close the model."""
        self._role.close()


class Role:
    """What a Python model does: each request becomes a response or an error of its own.

    Args:
        settings: settings of the version.
        folder: the version folder.
        version: its number.
        server: the module ``triton_python_backend_utils``.
    """

    def __init__(self, settings: Settings, folder: Path, version: int, server: Any) -> None:
        self.settings, self.folder, self.version, self.server = settings, folder, version, server
        self.spec = settings.spec
        self.processor = Processor(self.spec, threads=settings.threads)

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """One response for each request."""
        responses = []
        for request in requests:
            try:
                responses.append(self.respond(self.answer(request)))
            except EomtDeployError as error:
                responses.append(self.failure(error))
        return responses

    def answer(self, request: Any) -> dict[str, np.ndarray[Any, Any]]:
        """The output tensors for one request, by name."""
        raise NotImplementedError

    def close(self) -> None:
        """Free what the role holds."""

    def call(self, request: Any) -> Call:
        """The images and thresholds of a request."""
        image = self.server.get_input_tensor_by_name(request, IMAGE)
        return read_call(image.as_numpy(), request.parameters(), self.processor)

    def respond(self, outputs: dict[str, np.ndarray[Any, Any]]) -> Any:
        """A response with these tensors."""
        tensors = [self.server.Tensor(name, array) for name, array in outputs.items()]
        return self.server.InferenceResponse(output_tensors=tensors)

    def failure(self, error: EomtDeployError) -> Any:
        """A response with an error: of the client if it can fix it, otherwise of the server."""
        kinds = self.server.TritonError
        code = kinds.INVALID_ARG if error.exit_code == 2 else kinds.INTERNAL
        return self.server.InferenceResponse(error=kinds(as_text(error), code))

    def prepared(self, images: Sequence[bytes]) -> tuple[np.ndarray[Any, Any], list[Geometry]]:
        """Network inputs uint8 [N, H, W, 3] of all images, and their geometries."""
        parts, geometries = [], []
        for image in images:
            pixels = load_image(image, max_pixels=self.settings.max_pixels)
            inputs, geometry = self.processor.preprocess(pixels)
            parts.append(inputs)
            geometries.append(geometry)
        return np.concatenate(parts), geometries

    def results(
        self,
        class_logits: Logits,
        mask_logits: Logits,
        geometries: Sequence[Geometry],
        thresholds: Thresholds,
    ) -> dict[str, np.ndarray[Any, Any]]:
        """The output tensor with one JSON text for each image."""
        texts, start = [], 0
        for geometry in geometries:
            end = start + geometry.num_inputs
            result = self.processor.postprocess(
                class_logits[start:end], mask_logits[start:end], geometry, **thresholds._asdict()
            )
            texts.append(result.to_json(masks="rle"))
            start = end
        return {RESULT: as_tensor(texts)}


class Segment(Role):
    """Runs everything with :class:`Segmenter` (form ``python``)."""

    def __init__(self, settings: Settings, folder: Path, version: int, server: Any) -> None:
        super().__init__(settings, folder, version, server)
        assert settings.model is not None
        self.segmenter = Segmenter(
            folder / settings.model,
            backend=settings.backend,
            device=settings.device,
            threads=settings.threads,
            max_pixels=settings.max_pixels,
        )
        for remark in self.segmenter.engine.remarks:
            server.Logger.log_warn(remark)
        server.Logger.log_info(f"eomt-deploy: {self.segmenter!r}")

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Segment the images of all requests; reading, network and post-processing overlap."""
        responses: list[Any] = [None] * len(requests)
        calls: dict[int, Call] = {}
        for index, request in enumerate(requests):
            try:
                calls[index] = self.call(request)
            except EomtDeployError as error:
                responses[index] = self.failure(error)
        for group in group_equal(calls):
            for index, answer in self._answers(group):
                responses[index] = (
                    self.failure(answer)
                    if isinstance(answer, EomtDeployError)
                    else self.respond({RESULT: as_tensor(answer)})
                )
        return responses

    def _answers(self, group: dict[int, Call]) -> list[tuple[int, list[str] | EomtDeployError]]:
        """The texts for each call of a group with equal thresholds, or its error."""
        images = [image for call in group.values() for image in call.images]
        try:
            texts = self._segment(images, next(iter(group.values())).thresholds)
        except EomtDeployError as error:
            if len(group) == 1:
                return [(index, error) for index in group]
            # The network failed on one of the images: find out which.
            return [item for index, call in group.items() for item in self._answers({index: call})]
        answers: list[tuple[int, list[str] | EomtDeployError]] = []
        for index, call in group.items():
            own, texts = texts[: len(call.images)], texts[len(call.images) :]
            errors = [text for text in own if isinstance(text, EomtDeployError)]
            good = [text for text in own if isinstance(text, str)]
            answers.append((index, errors[0] if errors else good))
        return answers

    def _segment(
        self, images: Sequence[bytes], thresholds: Thresholds
    ) -> list[str | EomtDeployError]:
        return [
            result if isinstance(result, EomtDeployError) else result.to_json(masks="rle")
            for result in self.segmenter.stream(images, return_errors=True, **thresholds._asdict())
        ]

    def close(self) -> None:
        self.segmenter.close()


class Bls(Role):
    """Prepares images, calls the network in Triton, and computes the results (form ``bls``)."""

    def answer(self, request: Any) -> dict[str, np.ndarray[Any, Any]]:
        call = self.call(request)
        images, geometries = self.prepared(call.images)
        parts = [self._run(part, count) for part, count in batches(images, *self.settings.batch)]
        class_logits, mask_logits = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
        return self.results(class_logits, mask_logits, geometries, call.thresholds)

    def _run(self, images: np.ndarray[Any, Any], count: int) -> tuple[Logits, Logits]:
        """The first ``count`` outputs of the network for one batch."""
        server = self.server
        response = server.InferenceRequest(
            model_name=self.settings.network,
            model_version=self.version,
            requested_output_names=list(OUTPUTS),
            inputs=[server.Tensor(INPUT, images)],
            # Otherwise the outputs of a network on a GPU stay there.
            preferred_memory=server.PreferredMemory(server.TRITONSERVER_MEMORY_CPU),
        ).exec()
        if response.has_error():
            raise DeviceError(
                f"The network {self.settings.network} failed: {response.error().message()}",
                fix="Read the log of the server.",
            )
        found = [server.get_output_tensor_by_name(response, name).as_numpy() for name in OUTPUTS]
        return found[0][:count], found[1][:count]


class Preprocess(Role):
    """Encoded images to network inputs (form ``ensemble``)."""

    def answer(self, request: Any) -> dict[str, np.ndarray[Any, Any]]:
        images, geometries = self.prepared(self.call(request).images)
        if len(images) > self.settings.batch[1]:
            raise too_many(len(images), self.settings.batch[1])
        sizes = np.array([geometry.image_size for geometry in geometries], np.int32)
        return {INPUT: images, SIZES: sizes}


class Postprocess(Role):
    """Logits to results (form ``ensemble``)."""

    def answer(self, request: Any) -> dict[str, np.ndarray[Any, Any]]:
        names = (*OUTPUTS, SIZES)
        class_logits, mask_logits, sizes = (
            self.server.get_input_tensor_by_name(request, name).as_numpy() for name in names
        )
        geometries = [
            plan((int(height), int(width)), self.spec.image_size, self.spec.resize)
            for height, width in sizes
        ]
        thresholds = read_thresholds(request.parameters(), self.processor)
        return self.results(class_logits, mask_logits, geometries, thresholds)


ROLES: dict[str, type[Role]] = {
    "segment": Segment,
    "bls": Bls,
    "preprocess": Preprocess,
    "postprocess": Postprocess,
}


def as_tensor(texts: Sequence[str]) -> np.ndarray[Any, Any]:
    """Texts as a tensor of bytes [B, 1]."""
    tensor = np.empty((len(texts), 1), np.object_)
    tensor[:, 0] = [text.encode() for text in texts]
    return tensor
