"""Keys as trainers write them: with prefixes, in containers, with wrappers in the middle."""

from __future__ import annotations

from dataclasses import replace

import pytest
import tiny
import torch
from layouts import huggingface_keys, lightly_keys

from eomt_deploy.checkpoints import read_checkpoint
from eomt_deploy.checkpoints.prefixes import find_copies
from eomt_deploy.errors import CheckpointError

ROTARY = replace(tiny.ARCH, norm_eps=1e-6, rope_theta=100.0)


FACTS = {
    "image_size": tiny.SIZE,
    "image_normalize": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)},
    "num_joint_blocks": tiny.ARCH.num_blocks,
    "classes": {i: c["name"] for i, c in enumerate(tiny.CLASSES)},
}


def rotary():
    model = tiny.network(ROTARY)
    for block in model.backbone.layers:
        block.attn.qkv.bias[ROTARY.width : 2 * ROTARY.width] = (
            0  # the attention keys of DINOv3 have no bias
        )
    return model


def lightly():
    return tiny.network(replace(tiny.ARCH, upscale_norm_eps=1e-5))


LAYOUTS = {
    "official": (tiny.network, tiny.official_keys),
    "official without network": (
        tiny.network,
        lambda model: {
            key.removeprefix("network."): v for key, v in tiny.official_keys(model).items()
        },
    ),
    "huggingface": (tiny.network, huggingface_keys),
    "huggingface DINOv3": (rotary, huggingface_keys),
    "lightly-train": (lightly, lightly_keys),
}


def under(prefix):
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def inside(state):
    """The keys after torch.compile and FSDP have wrapped parts of a network."""
    found = {}
    for key, value in state.items():
        first, dot, rest = key.partition(".")
        key = f"{first}{dot}_orig_mod.{rest}" if first in ("network", "model") else key
        for word in ("layers.", "blocks."):
            before, found_word, after = key.partition(word)
            if found_word:
                number, _, rest = after.partition(".")
                key = f"{before}{word}{number}._fsdp_wrapped_module.{rest}"
        found[key] = value
    return found


KINDS = {
    "plain": (lambda state: state, ""),
    "module": (under("module."), "module"),
    "compiled": (under("_orig_mod."), "_orig_mod"),
    "model": (under("model."), "model"),
    "net": (under("net."), "net"),
    "fsdp": (under("_fsdp_wrapped_module."), "_fsdp_wrapped_module"),
    "checkpointed": (under("_checkpoint_wrapped_module.x."), "_checkpoint_wrapped_module.x"),
    "any name": (under("lit_segmenter.backend_v2."), "lit_segmenter.backend_v2"),
    "all of them": (under("module._orig_mod.model."), "module._orig_mod.model"),
    "inside": (inside, "_orig_mod"),
    "both": (lambda state: under("module.")(inside(state)), "module"),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("kind", KINDS)
def test_every_prefix_of_every_layout(tmp_path, layout, kind):
    make, keys = LAYOUTS[layout]
    change, stripped = KINDS[kind]
    model = make()
    content = {"train_model": change(keys(model)), "model_init_args": FACTS}
    if layout != "lightly-train":
        content = {"state_dict": content["train_model"], "epoch": 3}
    torch.save(content, tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    wanted = model.state_dict()
    assert found.tensors.keys() == wanted.keys()
    for key, value in wanted.items():
        torch.testing.assert_close(found.tensors[key], value, rtol=0, atol=1e-6)
    no_part = kind == "inside" and layout in ("official without network", "huggingface",
                                              "huggingface DINOv3")  # fmt: skip
    if no_part:
        stripped = "_fsdp_wrapped_module"
    # Prefixes that belong to the layout are not mentioned.
    assert bool(found.stripped) == bool(found.notes) == bool(stripped)
    assert stripped in found.stripped
    assert all(found.stripped in note for note in found.notes)


CONTAINERS = ("state_dict", "model", "module", "net", "weights", "ema_state_dict", "my_weights")


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("keys", [tiny.official_keys, huggingface_keys])
def test_every_container(tmp_path, container, keys):
    torch.save({"epoch": 1, container: keys(tiny.network())}, tmp_path / "a.pt")
    torch.save({"outer": [{container: keys(tiny.network())}]}, tmp_path / "b.pt")
    for name, key in (("a.pt", container), ("b.pt", f"outer.0.{container}")):
        found = read_checkpoint(tmp_path / name)
        assert found.architecture == tiny.ARCH
        assert (found.weights_key, found.stripped) == (key, "")


def test_averaged_model_of_pytorch(tmp_path):
    """Averaged weights from torch.optim.swa_utils, updated twice, are read as saved."""

    class Trained(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = tiny.network()

    trained = Trained().requires_grad_(True)
    average = torch.optim.swa_utils.AveragedModel(trained)
    average.update_parameters(trained)
    with torch.no_grad():
        trained.network.q.weight.add_(2)
    average.update_parameters(trained)
    path = tmp_path / "swa.pt"
    torch.save(average.state_dict(), path)
    found = read_checkpoint(path, num_blocks=2)
    torch.testing.assert_close(found.tensors["q.weight"], trained.network.q.weight - 1)
    assert found.weights_key == "module"
    assert any("averaged" in note for note in found.notes)
    assert not any("never updated" in note for note in found.notes)
    torch.save(torch.optim.swa_utils.AveragedModel(trained).state_dict(), path)
    assert any("never updated" in n for n in read_checkpoint(path, num_blocks=2).notes)


def test_the_same_part_twice_is_refused():
    with pytest.raises(CheckpointError, match=r"network\.q\.weight and network\.\S*q\.weight"):
        find_copies([
            "network.q.weight", "network.class_head.weight", "network._orig_mod.q.weight",
        ])  # fmt: skip


def test_what_is_no_network():
    assert find_copies(["model.decoder.q.weight", "model.head.weight", "blocks.0.q.weight"]) == []
    assert find_copies(["a.queries.weight", "b.class_head.weight"]) == []
    assert find_copies([]) == []


def test_other_tensors_beside_the_network_are_named(tmp_path):
    state = {f"model.{k}": v for k, v in tiny.official_keys(tiny.network()).items()}
    torch.save({"state_dict": {**state, "metric.table": torch.zeros(3)}}, tmp_path / "last.ckpt")
    found = read_checkpoint(tmp_path / "last.ckpt")
    assert found.architecture == tiny.ARCH
    assert any(
        "1 tensors do not belong to the network and are left out: " in n for n in found.notes
    )
    assert any("state_dict.metric.table" in n for n in found.notes)
