"""Rows of LightlyTrain: ``torch`` and ``onnx``.

LightlyTrain is under the AGPL: it runs in its own process and environment, and nothing of it is
copied here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from worker import THREADS, Row, let_torchvision_import, paint

let_torchvision_import()

THINGS = 80
NORMALIZE = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
NAMES = (
    (r"^layers\.(\d+)\.", r"backbone.blocks.\1."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
    (r"\.attention\.out_proj\.", ".attn.proj."),
    (r"^mask_head\.fc1\.", "mask_head.0."),
    (r"^mask_head\.fc2\.", "mask_head.2."),
    (r"^mask_head\.fc3\.", "mask_head.4."),
    (r"^class_predictor\.", "class_head."),
    (r"^query\.", "queries."),
    (r"^layernorm\.", "backbone.norm."),
    (r"^upscale_block\.block\.(\d)\.layernorm2d\.", r"upscale.\1.norm."),
    (r"^upscale_block\.block\.", "upscale."),
    (r"^embeddings\.cls_token", "backbone.cls_token"),
    (r"^embeddings\.register_tokens", "backbone.register_tokens"),
    (r"^embeddings\.patch_embeddings\.projection\.", "backbone.patch_embed.proj."),
)
"""Names of transformers -> names of LightlyTrain."""


def renamed(state: dict[str, Any]) -> dict[str, Any]:
    """The weights of transformers with LightlyTrain's names."""
    import torch

    found: dict[str, Any] = {}
    for name, value in state.items():
        for pattern, replacement in NAMES:
            name = re.sub(pattern, replacement, name)
        found[name] = value
    del found["attn_mask_probs"]
    del found["criterion.empty_weight"]
    positions = found.pop("embeddings.position_embeddings.weight")
    # LightlyTrain also adds one to the class token.
    first = torch.zeros(1, positions.shape[1])
    found["backbone.pos_embed"] = torch.cat([first, positions])[None]
    for name in [name for name in found if ".attention.q_proj." in name]:
        parts = [found.pop(name.replace(".q_proj.", f".{part}_proj.")) for part in "qkv"]
        found[name.replace(".attention.q_proj.", ".attn.qkv.")] = torch.cat(parts)
    found["backbone.mask_token"] = torch.zeros(1, positions.shape[1])  # unused
    return found


def _torch(task: str, work: Path) -> Any:
    import torch
    from safetensors.torch import load_file

    state = renamed(load_file(work / f"{task}-transformers" / "model.safetensors"))
    side = int(16 * (state["backbone.pos_embed"].shape[1] - 1) ** 0.5)
    classes = {index: f"class {index}" for index in range(len(state["class_head.bias"]) - 1)}
    settings: dict[str, Any] = {
        "model_name": "dinov2/vits14-notpretrained-eomt", "image_size": (side, side),
        "image_normalize": NORMALIZE, "num_queries": len(state["queries.weight"]),
        "num_joint_blocks": 3, "load_weights": False,
        # Patches of 16 pixels and positions for this size, as in the published EoMT.
        "backbone_args": {"patch_size": 16, "img_size": side},
    }  # fmt: skip
    if task == "panoptic":
        from lightly_train._task_models.dinov2_eomt_panoptic_segmentation import task_model

        things = {index: name for index, name in classes.items() if index < THINGS}
        stuff = {index: name for index, name in classes.items() if index >= THINGS}
        model: Any = task_model.DINOv2EoMTPanopticSegmentation(
            thing_classes=things, stuff_classes=stuff, **settings
        )
    elif task == "instance":
        from lightly_train._task_models.dinov2_eomt_instance_segmentation import task_model

        model = task_model.DINOv2EoMTInstanceSegmentation(classes=classes, **settings)
    else:
        from lightly_train._task_models.dinov2_eomt_semantic_segmentation import task_model

        model = task_model.DINOv2EoMTSemanticSegmentation(
            classes=classes, class_ignore_index=None, **settings
        )
    model.load_state_dict(state, strict=True)
    torch.set_num_threads(THREADS)
    return model.eval()


def prepare(task: str, row: str, work: Path) -> None:
    path = work / f"lightly-{task}.onnx"
    if row == "onnx" and not path.is_file():
        _torch(task, work).export_onnx(path, verify=False)


def load(task: str, row: str, work: Path) -> Row:
    model = _torch(task, work)
    if row == "onnx":
        return Row(_with_onnx(model, task, work), _labels(task), ("lightly-train", "onnxruntime"))
    threshold = {} if task == "semantic" else {"threshold": 0.8 if task == "panoptic" else 0.5}
    return Row(
        lambda path: model.predict(path, **threshold), _labels(task), ("lightly-train", "torch")
    )


def _with_onnx(model: Any, task: str, work: Path) -> Any:
    """Prediction with the exported file.

    LightlyTrain has no function for that. The masks of the file are cropped and enlarged with the
    nearest neighbour, as in its notebooks; its own class prepares the image.
    """
    import onnxruntime
    import torch
    from torch.nn import functional

    session = onnxruntime.InferenceSession(
        work / f"lightly-{task}.onnx", providers=["CPUExecutionProvider"]
    )

    def enlarge(masks: Any, meta: dict[str, Any]) -> Any:
        """[N, h, w] -> [N, H, W], without padding."""
        cut = masks[None, :, : meta["crop_h"], : meta["crop_w"]].to(torch.float32)
        size = (meta["orig_h"], meta["orig_w"])
        return functional.interpolate(cut, size=size, mode="nearest")[0].to(masks.dtype)

    def predict(path: str) -> Any:
        pixels, meta = model.preprocess_image(path)
        batch = model.preprocess_batch([pixels] if task == "semantic" else pixels[None])
        values = session.run(None, {"images": batch.numpy()})
        names = [output.name for output in session.get_outputs()]
        found = {name: torch.from_numpy(v) for name, v in zip(names, values, strict=True)}
        if task == "semantic":
            crops = functional.pad(found["logits"], (0, 0, 0, 0, 0, 1))
            size = (meta["resized_h"], meta["resized_w"])
            logits = model.untile(crops, meta["origins"], [size])[0][None, :-1]
            size = (meta["orig_h"], meta["orig_w"])
            return functional.interpolate(logits, size=size, mode="bilinear").argmax(1)[0]
        if task == "panoptic":
            return {"masks": enlarge(found["masks"][0].permute(2, 0, 1), meta).permute(1, 2, 0)}
        keep = found["scores"][0] >= 0.5
        kept = {name: found[name][0][keep] for name in ("masks", "labels", "scores")}
        return kept | {"masks": enlarge(kept["masks"], meta)}

    return predict


def _labels(task: str) -> Any:
    def labels(result: Any) -> Any:
        if task == "semantic":
            return result
        if task == "panoptic":
            masks = result["masks"]
            # Pixels without a segment have the id -1, and a class all the same.
            return masks[..., 0].masked_fill(masks[..., 1] < 0, -1)
        size = tuple(result["masks"].shape[-2:])
        return paint(result["masks"], result["labels"], size)

    return labels
