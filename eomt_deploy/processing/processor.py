"""Pre- and post-processing of a model, without an engine."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from eomt_deploy.errors import UsageError
from eomt_deploy.processing import geometry as geo
from eomt_deploy.processing.geometry import Geometry
from eomt_deploy.processing.instance import segment_instances
from eomt_deploy.processing.outputs import check_finite, check_outputs
from eomt_deploy.processing.panoptic import segment_panoptic
from eomt_deploy.processing.resize import resize_image
from eomt_deploy.processing.semantic import segment_semantic
from eomt_deploy.result import Segmentation
from eomt_deploy.sources import ImageSource, load_image
from eomt_deploy.spec import ModelSpec, Task, Thresholds

THRESHOLDS_OF: dict[Task, tuple[str, ...]] = {
    "semantic": (),
    "instance": ("score",),
    "panoptic": ("score", "mask", "overlap"),
}


class Processor:
    """Images to network inputs, network outputs to a :class:`Segmentation`.

    Args:
        spec: description of the model.
        threads: number of CPU threads for post-processing; None uses all, up to 16.
        backend: name of the backend that computes the outputs, for error messages.

    >>> processor = Processor(spec)  # doctest: +SKIP
    >>> images, geometry = processor.preprocess("street.jpg")  # doctest: +SKIP
    >>> result = processor.postprocess(*engine.run(images), geometry)  # doctest: +SKIP
    """

    def __init__(
        self, spec: ModelSpec, *, threads: int | None = None, backend: str | None = None
    ) -> None:
        self.spec = spec
        self.threads = threads
        self.backend = backend

    def preprocess(self, image: ImageSource) -> tuple[npt.NDArray[np.uint8], Geometry]:
        """Resize one image (Pillow bilinear), and pad it or cut it into windows.

        Args:
            image: anything that :func:`eomt_deploy.load_image` takes.

        Returns:
            uint8 [N, H, W, 3], RGB (N = 1, or the number of windows), and the geometry that
            :meth:`postprocess` needs.

        Raises:
            ImageError: the image cannot be read, or its aspect ratio is too extreme.
        """
        pixels = load_image(image)
        height, width = self.spec.image_size
        plan = geo.plan((pixels.shape[0], pixels.shape[1]), (height, width), self.spec.resize)
        scaled = resize_image(pixels, plan.scaled_size)
        if plan.windows:
            crops = [
                scaled[start:end] if plan.axis == 0 else scaled[:, start:end]
                for start, end in plan.windows
            ]
            return np.stack(crops), plan
        canvas = np.zeros((1, height, width, 3), np.uint8)
        canvas[0, : scaled.shape[0], : scaled.shape[1]] = scaled
        return canvas, plan

    def postprocess(
        self,
        class_logits: npt.NDArray[np.floating],
        mask_logits: npt.NDArray[np.floating],
        geometry: Geometry,
        *,
        score_threshold: float | None = None,
        mask_threshold: float | None = None,
        overlap_threshold: float | None = None,
        image: str | None = None,
    ) -> Segmentation:
        """Turn the network outputs for one image into its segmentation, at the image's size.

        Args:
            class_logits: [N, Q, C+1], with N as :meth:`preprocess` returned it.
            mask_logits: [N, Q, h, w].
            geometry: geometry from :meth:`preprocess`.
            score_threshold: panoptic: the class score of a query must exceed it; instance:
                minimum final score; semantic: none. None uses the model's default.
            mask_threshold: panoptic: minimum mask probability of a pixel.
            overlap_threshold: panoptic: minimum fraction of its mask that a query must win.
            image: name of the image, for error messages.

        Raises:
            UsageError: the task does not have a given threshold, or the outputs are of another
                model.
            VerificationError: an output is infinite or NaN.
        """
        thresholds = self.thresholds(score_threshold, mask_threshold, overlap_threshold)
        return self.postprocess_with(class_logits, mask_logits, geometry, thresholds, image)

    def postprocess_with(
        self,
        class_logits: npt.NDArray[np.floating],
        mask_logits: npt.NDArray[np.floating],
        geometry: Geometry,
        thresholds: Thresholds,
        image: str | None = None,
    ) -> Segmentation:
        """As :meth:`postprocess`, with all thresholds in one object.

        Thresholds that the task does not have are ignored.
        """
        classes_given, masks = np.asarray(class_logits), np.asarray(mask_logits)
        check_outputs(self.spec, classes_given.shape, masks.shape, geometry)
        check_finite(
            self.spec, classes_given, masks,
            backend=self.backend, image=image, threads=self.threads,
        )  # fmt: skip
        logits = np.asarray(classes_given, np.float32)
        classes = self.spec.classes
        if self.spec.task == "semantic":
            return segment_semantic(logits, masks, geometry, classes, self.threads)
        if self.spec.task == "instance":
            return segment_instances(
                logits[0], masks[0], geometry, classes, thresholds.score, self.threads
            )
        return segment_panoptic(logits[0], masks[0], geometry, classes, thresholds, self.threads)

    def thresholds(
        self,
        score: float | None = None,
        mask: float | None = None,
        overlap: float | None = None,
    ) -> Thresholds:
        """The model's default thresholds, replaced by the given ones.

        Raises:
            UsageError: a threshold is outside 0 to 1, or the task does not have it.
        """
        named = {"score": score, "mask": mask, "overlap": overlap}
        given = {name: value for name, value in named.items() if value is not None}
        known = THRESHOLDS_OF[self.spec.task]
        for name, value in given.items():
            if name not in known:
                raise UsageError(
                    f"The {name} threshold does not apply to a {self.spec.task} model.",
                    why="Each pixel gets the class with the highest score."
                    if self.spec.task == "semantic"
                    else "The masks of an instance model are not combined to one map.",
                    fix=f"Leave out --{name}-threshold (in Python: {name}_threshold). "
                    f"Thresholds of this task: {', '.join(known) or 'none'}.",
                )
            if not 0 <= value <= 1:
                raise UsageError(
                    f"The {name} threshold must be between 0 and 1, got {value}.",
                    fix=f"Pass e.g. 0.5, or leave --{name}-threshold out for the model's default.",
                )
        return replace(self.spec.thresholds, **given)
