"""Choice of one of several networks in a file."""

from __future__ import annotations

import pytest
import tiny
import torch

from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.errors import CheckpointError


def keys(value: float, prefix: str = "", **changes):
    """A complete network whose queries are all ``value``."""
    state = tiny.official_keys(tiny.network())
    state["network.q.weight"] = torch.full_like(state["network.q.weight"], value)
    return {f"{prefix}{key}": tensor for key, tensor in (state | changes).items()}


def read(folder, content, **options):
    path = folder / "last.ckpt"
    torch.save(content, path)
    found = read_checkpoint(path, **options)
    return float(found.tensors["q.weight"].mean()), found


RAW, EMA = 1.0, 2.0
PAIRS = {
    "timm": ({"state_dict": keys(RAW), "state_dict_ema": keys(EMA)}, "state_dict_ema"),
    "model_ema": ({"model": keys(RAW), "model_ema": keys(EMA)}, "model_ema"),
    "ema_state_dict": ({"state_dict": keys(RAW), "ema_state_dict": keys(EMA)}, "ema_state_dict"),
    "ema": ({"model": keys(RAW), "ema": keys(EMA)}, "ema"),
    "ema.module": ({"model": keys(RAW), "ema": {"module": keys(EMA), "updates": 7}}, "ema.module"),
    "ema_model": ({"model": keys(RAW), "ema_model": keys(EMA)}, "ema_model"),
    "ModelEMA": ({"model": keys(RAW), "ModelEMA": keys(EMA)}, "ModelEMA"),
    "flat": (
        {"state_dict": keys(RAW, "model.") | keys(EMA, "ema_model.")},
        "state_dict.ema_model",
    ),
    "flat, raw at the top": ({"state_dict": keys(RAW) | keys(EMA, "ema.")}, "state_dict.ema"),
    "private": ({"state_dict": keys(RAW) | keys(EMA, "_ema_model.")}, "state_dict._ema_model"),
    "averaged model": (
        {"state_dict": keys(RAW) | keys(EMA, "avg.module.") | {"avg.n_averaged": torch.tensor(3)}},
        "state_dict.avg.module",
    ),
    # These two store the averaged weights where others store the last ones.
    "lightning": (
        {
            "state_dict": keys(EMA),
            "current_model_state": keys(RAW),
            "averaging_state": {"n_averaged": torch.tensor(3)},
        },
        "state_dict",
    ),
    "mmengine": (
        {
            "state_dict": keys(EMA),
            "ema_state_dict": keys(RAW, "module.") | {"steps": torch.tensor(3)},
        },
        "state_dict",
    ),
}


@pytest.mark.parametrize(("content", "label"), PAIRS.values(), ids=PAIRS)
def test_averaged_weights_are_taken_and_named(tmp_path, content, label):
    value, found = read(tmp_path, content)
    assert (value, found.weights_key) == (EMA, label)
    assert any(f"averaged (EMA) weights under {label} are used" in note for note in found.notes)


@pytest.mark.parametrize(("content", "label"), PAIRS.values(), ids=PAIRS)
def test_the_others_on_request(tmp_path, content, label):
    torch.save(content, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="not contain a network under 'nothing'") as caught:
        read_checkpoint(tmp_path / "x.pt", weights_key="nothing")
    labels = caught.value.why.partition(": ")[2].partition(". A dot")[0].rstrip(".").split(", ")
    (other,) = set(labels) - {label}
    value, found = read(tmp_path, content, weights_key=other)
    assert (value, found.weights_key) == (RAW, other)
    assert read(tmp_path, content, preferred_key=other)[0] == RAW
    assert read(tmp_path, content, preferred_key="not in this file")[0] == EMA
    assert read(tmp_path, content, weights_key=label)[0] == EMA


def test_a_part_of_the_path_is_enough(tmp_path):
    content = {"a": {"model": keys(RAW)}, "b": {"model": keys(EMA)}}
    assert read(tmp_path, content, weights_key="a")[0] == RAW
    assert read(tmp_path, content, weights_key="b")[0] == EMA
    with pytest.raises(CheckpointError, match=r"'model' matches several.*a\.model, b\.model"):
        read(tmp_path, content, weights_key="model")
    with pytest.raises(CheckpointError, match="not contain a network under 'mode'"):
        read(tmp_path, content, weights_key="mode")


def test_at_the_top_of_the_file(tmp_path):
    content = keys(RAW) | {"ema": keys(EMA)}
    assert read(tmp_path, content)[0] == EMA
    value, found = read(tmp_path, content, weights_key=".")
    assert (value, found.weights_key) == (RAW, ".")
    assert read(tmp_path, keys(RAW))[1].weights_key == ""


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"student": keys(RAW), "teacher": keys(EMA)}, "student, teacher"),
        ({"state_dict": keys(RAW, "student.") | keys(EMA, "teacher.")},
         "state_dict.student, state_dict.teacher"),
        ({"model": keys(RAW), "ema": keys(EMA), "model_ema": keys(EMA)}, "model, ema, model_ema"),
        ({"state_dict": keys(RAW), "model": keys(EMA)}, "state_dict, model"),
    ],
)  # fmt: skip
def test_two_copies_without_a_rule_are_refused(tmp_path, content, names):
    with pytest.raises(CheckpointError, match=f"copies of the network: {names}") as caught:
        read(tmp_path, content)
    assert f"--weights-key {names.partition(',')[0]}" in caught.value.fix


def test_one_object_under_two_names_is_one_network(tmp_path):
    state = keys(RAW)
    assert read(tmp_path, {"state_dict": state, "model": state})[1].weights_key == "state_dict"


def test_more_networks_than_anyone_trains(tmp_path):
    one = {"q.weight": torch.zeros(1), "class_head.weight": torch.zeros(1)}
    many = {f"{i}.{key}": value for i in range(17) for key, value in one.items()}
    with pytest.raises(CheckpointError, match="17 networks, the maximum is 16"):
        read(tmp_path, many)


def test_an_average_of_the_parameters_alone(tmp_path):
    """Only the model has buffers and frozen layers, and the schedule must not be averaged."""
    frozen = "network.encoder.backbone.cls_token"
    schedule = "network.attn_mask_probs"
    average = keys(EMA, **{schedule: torch.full((2,), 1e-4)})
    mean = "network.encoder.pixel_mean"
    raw = keys(RAW, **{mean: torch.full((1, 3, 1, 1), 0.25)})
    for key in (frozen, mean):
        del average[key]
    value, found = read(tmp_path, {"model": raw, "model_ema": average})
    assert value == EMA
    assert found.attn_mask_probs == (0.0, 0.0)
    assert torch.equal(found.tensors["backbone.cls_token"], raw[frozen])
    assert float(found.tensors["pixel_mean"].mean()) == 0.25
    assert any("2 tensors are missing in the averaged weights and are taken from model" in n
               for n in found.notes)  # fmt: skip
    assert any("attn_mask_probs is taken from model" in n for n in found.notes)
    del average[schedule]
    assert read(tmp_path, {"model": raw, "model_ema": average})[1].attn_mask_probs == (0.0, 0.0)


def test_averages_that_cannot_be_read_are_named(tmp_path):
    shadow = {"decay": 0.99, "shadow_params": list(keys(EMA).values())}
    value, found = read(tmp_path, {"model": keys(RAW), "ema": shadow, "optimizer": {
        "state": {0: {"exp_avg": torch.zeros(9), "step": torch.tensor(4.0)}},
    }})  # fmt: skip
    assert value == RAW
    (note,) = found.notes
    assert "seem to be averaged (EMA) weights" in note
    assert "ema.shadow_params.0" in note


def test_lightnings_average_that_was_never_updated(tmp_path):
    content = {
        "state_dict": keys(EMA), "current_model_state": keys(RAW),
        "averaging_state": {"n_averaged": torch.tensor(0)},
    }  # fmt: skip
    assert any("never updated" in note for note in read(tmp_path, content)[1].notes)
