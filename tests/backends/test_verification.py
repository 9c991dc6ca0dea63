"""Comparison of an engine with its reference, and the limits."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import tiny
from changed_engine import Changed, same
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.backends import open_engine
from eomt_deploy.backends.verification import compare, labels
from eomt_deploy.precision import PRECISIONS, engine_limits


@pytest.fixture
def reference(exported):
    with open_engine(exported("semantic"), backend="onnxruntime") as engine:
        yield engine


def test_equal_engines_do_not_differ(reference, image_path):
    result = compare(Changed(reference, same), reference, [image_path, image_path], batches=True)
    assert (result.images, result.relative_max) == (2, pytest.approx(0, abs=1e-6))
    shares = (result.class_agreement, result.mask_agreement, result.label_agreement)
    assert shares == (1.0, 1.0, 1.0)
    assert result.problems(PRECISIONS["fp32"]) == []


def test_one_class_over_the_image_is_found(reference, image_path):
    """What TensorRT 10.3 returns for vision transformers."""

    def one_class(class_logits, mask_logits):
        class_logits[..., 1] = class_logits.max() + 5
        return class_logits, mask_logits

    result = compare(Changed(reference, one_class), reference, [image_path])
    for precision in PRECISIONS:
        found = " ".join(result.problems(engine_limits(precision)))
        assert "label agreement" in found
        assert "class agreement" in found


def test_a_fault_that_only_a_batch_has_is_found(reference, image_path):
    def mixed(class_logits, mask_logits):
        return class_logits[::-1] if len(class_logits) == 2 else class_logits, mask_logits

    images = [image_path, next(iter(sorted(image_path.parent.glob("rocket.jpg"))))]
    panoptic = replace(reference.spec, task="panoptic", resize="letterbox")
    engine = Changed(reference, mixed, panoptic)
    assert not compare(engine, reference, images).problems(PRECISIONS["fp32"])
    assert compare(engine, reference, images, batches=True).problems(PRECISIONS["fp32"])
    # A model with a fixed batch has no other batch.
    fixed = Changed(reference, mixed, replace(panoptic, batch=1))
    assert not compare(fixed, reference, images, batches=True).problems(PRECISIONS["fp32"])


@pytest.mark.parametrize(("kind", "name"), [(0, "class logits"), (1, "mask logits")])
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_are_named(reference, image_path, kind, name, value):
    def broken(*logits):
        logits[kind][0, 0] = value
        return logits

    result = compare(Changed(reference, broken), reference, [image_path])
    assert result.not_finite == f"{name} on {image_path.name}"
    assert result.problems(PRECISIONS["int8"]) == [
        f"the {name} on {image_path.name} are NaN or infinite"
    ]


def test_values_of_the_reference_that_are_not_finite_are_named(reference, image_path):
    def broken(class_logits, mask_logits):
        class_logits[0, 0, 0] = np.nan
        return class_logits, mask_logits

    result = compare(reference, Changed(reference, broken), [image_path])
    assert result.not_finite == f"class logits of the reference on {image_path.name}"


def test_without_any_mask_equal_outputs_are_equal(reference, image_path):
    def empty(class_logits, mask_logits):
        return class_logits, np.full_like(mask_logits, -200)

    engine = Changed(reference, empty)
    result = compare(engine, engine, [image_path])
    assert result.label_agreement == 1
    assert result.problems(PRECISIONS["fp32"]) == []


@given(st.integers(0, 2**32 - 1))
def test_labels_are_those_of_the_definition(seed):
    rng = np.random.default_rng(seed)
    classes = rng.normal(size=(2, 7, 4), scale=4).astype(np.float32)
    masks = rng.normal(size=(2, 7, 3, 5), scale=30).astype(np.float32)
    best, scores = labels(classes, masks)
    shares = np.exp(classes.astype(np.float64))
    shares /= shares.sum(-1, keepdims=True)
    inside = 1 / (1 + np.exp(-masks.astype(np.float64)))
    expected = np.einsum("bqc,bqhw->bchw", shares[..., :-1], inside).reshape(2, 3, -1)
    assert np.allclose(scores, expected.max(1), rtol=1e-4)
    picked = np.take_along_axis(expected, best[:, None], 1)[:, 0]
    assert np.allclose(picked, expected.max(1), rtol=1e-4)


def test_limits_follow_what_the_engine_computes_in():
    names = {
        ("fp32", None): "fp32", ("fp32", "fp32"): "fp32", ("fp32", "tf32"): "fp16",
        ("fp32", "bf16"): "bf16", ("fp16", None): "fp16", ("fp16", "fp32"): "fp16",
        ("int8", "fp32"): "bf16", ("int8", None): "bf16", ("fp8", None): "bf16",
    }  # fmt: skip
    for (precision, arithmetic), name in names.items():
        assert engine_limits(precision, arithmetic) == PRECISIONS[name], (precision, arithmetic)


def test_the_reference_is_the_graph_in_fp32(saved):
    """Unrounded and unfused, for every precision: close to the network in PyTorch."""
    import torch

    from eomt_deploy.backends.certification import open_reference

    images = tiny.images(2)
    with torch.inference_mode():
        wanted = [t.numpy() for t in tiny.network()(torch.from_numpy(images))]
    for precision, limit in (("fp32", 1e-5), ("fp16", 2e-3), ("bf16", 2e-2), ("int8", 0.3),
                             ("fp8", 0.3)):  # fmt: skip
        with open_reference(saved(precision)) as reference:
            for have, want in zip(reference.run(images), wanted, strict=True):
                assert np.abs(have - want).max() < limit * np.abs(want).max(), precision
