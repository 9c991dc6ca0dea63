"""Examples at the end of each help page. A test parses all of them, and runs the quick ones."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "list": ("eomt-deploy list --task panoptic --max-params 100",),
    "export": (
        "eomt-deploy export eomt-tiny-scenes -o tiny.onnx",
        "eomt-deploy export last.ckpt --task semantic --classes classes.json -o mine.onnx",
        "eomt-deploy export eomt-tiny-scenes -o int8.onnx --precision int8 --calibrate images/",
    ),
    "build": (
        "eomt-deploy build tiny.onnx -o tiny.xml",
        "eomt-deploy build tiny.onnx -o tiny.engine --workspace 4GiB",
        "eomt-deploy build tiny.onnx -o tiny.mlpackage --weights int8",
    ),
    "inspect": ("eomt-deploy inspect tiny.onnx",),
    "verify": (
        "eomt-deploy verify tiny.xml images/",
        "eomt-deploy verify tiny.engine --bisect",
    ),
    "predict": (
        "eomt-deploy predict tiny.onnx images/ -o results/",
        "eomt-deploy predict tiny.onnx image.png -o overlay.png --conf 0.5",
        "eomt-deploy predict tiny.onnx clip.mp4 -o seen.mp4 --every 5",
    ),
    "batch": (
        "eomt-deploy batch tiny.onnx images/ -o results/",
        "eomt-deploy batch coco.onnx paths.parquet -o s3://bucket/results --address auto",
    ),
    "eval": (
        "eomt-deploy eval coco.onnx --data coco/ --split val2017",
        "eomt-deploy eval coco.onnx --data coco/ --limit 500 --worst worst/ --json scores.json",
    ),
    "compare": (
        "eomt-deploy compare tiny.onnx tiny.xml images/ -o difference.png",
        "eomt-deploy compare coco.onnx coco.int8.onnx --data coco/ --limit 500",
    ),
    "bench": (
        "eomt-deploy bench --engine tiny.onnx --engine tiny.xml --scope end-to-end",
        "eomt-deploy bench --engine tiny.onnx --scenario server --rate 20",
        "eomt-deploy bench --suite table1 --report-dir report/",
    ),
    "serve": (
        "eomt-deploy serve tiny.onnx",
        "eomt-deploy serve street=tiny.onnx coco=coco.onnx --workers 2 --port 9000",
    ),
    "triton": (
        "eomt-deploy triton tiny.onnx -o repo/",
        "eomt-deploy triton coco.engine ade.engine -o repo/ --form bls --instances 4",
        "eomt-deploy triton tiny.onnx -o repo/ --name scenes --version 2",
    ),
    "doctor": (
        "eomt-deploy doctor",
        "eomt-deploy doctor --matrix",
        "eomt-deploy doctor --matrix --run --backend onnxruntime --backend openvino",
    ),
    "demo": ("eomt-deploy demo -o eomt-demo/",),
    "cache show": ("eomt-deploy cache show",),
    "cache clear": ("eomt-deploy cache clear --all",),
}
"""Complete command lines by command."""
UNWRAPPED = "\b\n"
"""Keeps the line breaks of the following paragraph in a help page."""
TITLE = "Examples:\n"


def epilog(command: str) -> str:
    """The end of the help page of a command."""
    return UNWRAPPED + TITLE + "\n".join(f"  {line}" for line in EXAMPLES[command])
