"""The 36 steps of the tour: what a user types, and how the result is checked."""

from __future__ import annotations

import tour_checks as check
from tour_checks import Row, python

FILES, STREAM = "http://127.0.0.1:8000", "http://127.0.0.1:8001"
"""Addresses as the page shows them; the ports are free ones of the machine."""

BEFORE = Row(
    "Before the first step",
    """\
eomt-deploy export eomt-tiny-scenes -o tiny.onnx
eomt-deploy export eomt-tiny-scenes --task semantic -o semantic.onnx""",
    (check.prints("wrote tiny.onnx", "wrote semantic.onnx", "verified against PyTorch"),),
    only="wrote|segmentation, as",
)

OPENING = """\
import json
from pathlib import Path

import numpy as np
from PIL import Image

from eomt_deploy import EomtDeployError, Segmenter, open_video

scene = "examples/scenes/scene-1.png"
image = np.asarray(Image.open(scene).convert("RGB"))
segmenter = Segmenter("tiny.onnx")
result = segmenter.predict(scene)"""

SOURCES = (
    Row(
        "An image file",
        "eomt-deploy predict tiny.onnx examples/scenes/scene-1.png -o overlay.png",
        (
            check.prints("wrote overlay.png: Segmentation(panoptic, 240x320, 5 segments)"),
            check.overlay("overlay.png", "examples/scenes/scene-1.png"),
        ),
    ),
    Row(
        "A folder",
        "eomt-deploy predict tiny.onnx examples/scenes -o out/\nls out",
        (check.prints("wrote 6 of 6 results to out/"), check.result_folder("out", 6)),
    ),
    Row(
        "A glob",
        "eomt-deploy predict tiny.onnx 'examples/scenes/scene-[12].png' -o glob/",
        (check.prints("wrote 2 of 2 results to glob/"), check.result_folder("glob", 2)),
    ),
    Row(
        "A list of files",
        "cat list.txt\neomt-deploy predict tiny.onnx @list.txt -o listed/",
        (check.prints("wrote 3 of 3 results to listed/"), check.result_folder("listed", 3)),
    ),
    Row(
        "Standard input",
        "cat examples/scenes/scene-3.png | eomt-deploy predict tiny.onnx - -o piped.png",
        (
            check.prints("wrote piped.png"),
            check.overlay("piped.png", "examples/scenes/scene-3.png"),
        ),
    ),
    Row(
        "An image on a web server",
        f"eomt-deploy predict tiny.onnx {FILES}/scene-2.png -o web.png",
        (check.prints("wrote web.png"), check.overlay("web.png", "examples/scenes/scene-2.png")),
    ),
    Row(
        "A video, with its sound",
        "eomt-deploy predict tiny.onnx clip.mp4 -o seen.mp4",
        (
            check.prints("wrote 50 frames of clip.mp4 to seen.mp4"),
            check.same_video("seen.mp4", "clip.mp4"),
        ),
    ),
    Row(
        "A video as overlays, label images and JSON lines",
        "eomt-deploy predict tiny.onnx clip.mp4 -o videos/",
        (
            check.same_video("videos/clip.mp4", "clip.mp4"),
            check.lines_and_labels("videos/clip.jsonl", "videos/clip.labels.mkv"),
        ),
    ),
    Row(
        "A part of a video",
        "eomt-deploy predict tiny.onnx clip.mp4 -o part.mp4 --every 5 --start 0.5 --end 1.5",
        (
            check.prints("wrote 5 frames of clip.mp4 to part.mp4"),
            check.video_times("part.mp4", (0, 0.2, 0.4, 0.6, 0.8)),
        ),
    ),
    Row(
        "A video of a phone: turned, and with a variable frame rate",
        "eomt-deploy predict tiny.onnx phone.mov -o phone.mp4",
        (check.prints("wrote 10 frames"), check.same_video("phone.mp4", "phone.mov")),
    ),
    Row(
        "A camera",
        "eomt-deploy predict tiny.onnx 0 -o camera.mp4 --end 5",
        (check.live_video("camera.mp4", 5),),
        masked=r"\d+(?= frames)",
        absent="error E302: Camera 0 cannot be opened.",
    ),
    Row(
        "A live stream (Motion JPEG), without lagging behind",
        f"eomt-deploy predict tiny.onnx {STREAM}/camera.mjpg -o live.mp4 --end 2",
        (check.prints("frames of", "to live.mp4"), check.live_video("live.mp4", 2)),
        masked=r"\d+(?= frames)",
    ),
    python(
        "A NumPy array in RGB, or in BGR as OpenCV reads it",
        """\
print(segmenter.predict(image))

import cv2

frame = cv2.imread(scene)
print(segmenter.predict(frame, color_order="bgr").class_names == result.class_names)

try:
    segmenter.predict(image / 255)
except EomtDeployError as error:
    print(error)""",
        check.prints(
            "Segmentation(panoptic, 240x320, 5 segments)\nTrue\n", "uint8, got float64.\nFix: "
        ),
    ),
    python(
        "A PIL image, the content of a file, or an open file",
        """\
content = Path(scene).read_bytes()
for source in (Image.open(scene), content, open(scene, "rb")):
    print(type(source).__name__, (segmenter.predict(source).labels == result.labels).all())""",
        check.prints("PngImageFile True\nbytes True\nBufferedReader True\n"),
    ),
    python(
        "A tensor of PyTorch, channels first or last",
        """\
import torch

tensor = torch.from_numpy(image.copy())
for source in (tensor, tensor.permute(2, 0, 1)):
    print(list(source.shape), (segmenter.predict(source).labels == result.labels).all())""",
        check.prints("[240, 320, 3] True\n[3, 240, 320] True\n"),
    ),
    python(
        "A list of images, or a folder, in Python",
        """\
print(segmenter.predict([scene, image]))  # a list of results
for found in segmenter.stream("examples/scenes"):  # one after another, with constant memory
    print(found)""",
        check.prints(
            "[Segmentation(panoptic, 240x320, 5 segments), Segmentation", "280x180, 9 segments"
        ),
    ),
    python(
        "A video in Python",
        """\
with open_video("clip.mp4", every=10, start=0.5, end=1.5) as video:
    for found in segmenter.stream(video):
        print(f"{found.time:.2f}", found.class_names)""",
        check.prints("0.52 [", "0.92 [", "1.32 ["),
    ),
)

RESULTS = (
    python(
        "The model: names, warm-up, call",
        """\
print(segmenter)
print(segmenter.names)
segmenter.warmup()
print(segmenter("examples/scenes/scene-2.png"))""",
        check.prints(
            "Segmenter(eomt-tiny-scenes: panoptic, 11 classes", "{0: 'ball'", "9 segments)"
        ),
    ),
    python(
        "Length, loop, index, slice and selection",
        """\
print(len(result), result[0].class_name, result[:3], result[result.scores > 0.999])
for segment in result:
    print(segment.class_name, f"{segment.score:.2f}", segment.box)""",
        check.prints(
            "5 sand Segmentation(panoptic, 240x320, 3 segments)", "240x320, 3 segments)\n"
        ),
    ),
    python(
        "Filter by class, score, area and thing",
        """\
print(result.filter(classes=["ball", "water"], min_score=0.5).class_names)
print(result.filter(things_only=True, min_area=3000).class_names)

try:
    result.filter(classes=["bal"])
except EomtDeployError as error:
    print(error)""",
        check.prints("['water', 'ball']\n['crate']\n", "no class 'bal'", "Did you mean ball?"),
    ),
    python(
        "Masks, boxes and scores as arrays",
        """\
print(result.masks.shape, result.masks.dtype, result.boxes.shape, result.scores.round(2))
print(result.class_ids, result.class_names)
print((result.areas == result.masks.sum(axis=(1, 2))).all())""",
        check.prints(
            "(5, 240, 320) bool (5, 4)", "['sand', 'water', 'crate', 'ball', 'sky']\nTrue\n"
        ),
    ),
    python(
        "Polygons, and a segment cut out of the image",
        """\
ball = result[3]
for outer, *holes in ball.polygons(tolerance=2):
    print(len(outer), "corners,", len(holes), "holes; x, y of the first corner:", outer[0])
ball.crop(image).save("ball.png")""",
        check.prints("corners, 0 holes"),
        check.transparent("ball.png", 53, 70),
    ),
    python(
        "COCO: annotations, and the panoptic image",
        """\
Path("coco.json").write_text(json.dumps(result.to_coco(image_id=1)))
ids, info = result.to_panoptic()
ids.save("ids.png")
print(ids.size, [segment["category_name"] for segment in info])""",
        check.prints("(320, 240) ['sand', 'water', 'crate', 'ball', 'sky']"),
        check.coco_annotations("coco.json"),
        check.is_picture("ids.png"),
    ),
    python(
        "supervision and pandas",
        """\
detections = result.to_supervision()
print(len(detections), detections.data["class_name"].tolist(), detections.mask.shape)
print(result.to_pandas()[["class_name", "thing", "area", "x0", "y0", "x1", "y1"]])""",
        check.prints(
            "5 ['sand', 'water', 'crate', 'ball', 'sky'] (5, 240, 320)", "class_name  thing"
        ),
    ),
    python(
        "JSON and GeoJSON",
        """\
Path("result.json").write_text(result.to_json(tolerance=1))
print(result.to_json(tolerance=3)[:110], "…")
Path("result.geojson").write_text(json.dumps(result.to_geojson(tolerance=1)))""",
        check.prints('{"task": "panoptic", "size": [240, 320], "segments": [{"id": 0'),
        check.is_json("result.json"),
        check.closed_rings("result.geojson"),
    ),
    python(
        "Files for labelling tools: LabelMe and CVAT",
        """\
Path("scene-1.json").write_text(json.dumps(result.to_labelme("scene-1.png", tolerance=1)))
Path("cvat.xml").write_text(result.to_cvat("scene-1.png"))
print(result.to_cvat("scene-1.png")[:160], "…")""",
        check.prints('<image id="0" name="scene-1.png" width="320" height="240">'),
        check.labelling_files("scene-1.json", "cvat.xml", 320, 240),
    ),
    python(
        "Files: overlay, COCO and arrays",
        """\
for name in ("result.png", "result.jpg", "coco-result.json", "result.npz"):
    result.save(name)
print(sorted(np.load("result.npz")))

try:
    result.save("result.bmp")
except EomtDeployError as error:
    print(error)""",
        check.prints("Fix: Use .png or .jpg (overlay)"),
        check.overlay("result.png", "examples/scenes/scene-1.png"),
        check.overlay("result.jpg", "examples/scenes/scene-1.png"),
        check.is_json("coco-result.json"),
        check.arrays("result.npz", boxes=(5, 4), scores=(5,), segment_map=(240, 320)),
    ),
    python(
        "How certain a semantic model is about each pixel",
        """\
semantic = Segmenter("semantic.onnx").predict(scene, confidence=True)
print(semantic, semantic.confidence.shape, semantic.confidence.dtype)
for region in semantic:
    print(region.class_name, f"{region.score:.2f}")""",
        check.prints("Segmentation(semantic, 240x320, 6 classes) (240, 320) float32", "sky 0."),
    ),
)

PICTURES = (
    Row(
        "Overlays with a legend, boxes, and colours for colour blindness",
        """\
eomt-deploy predict tiny.onnx examples/scenes/scene-2.png -o colours.png --legend --boxes \
--no-scores --palette okabe-ito
eomt-deploy predict semantic.onnx examples/scenes/scene-2.png -o semantic.png --legend""",
        (
            check.overlay("colours.png", "examples/scenes/scene-2.png", legend=True),
            check.overlay("semantic.png", "examples/scenes/scene-2.png", legend=True),
        ),
    ),
    Row(
        "A plot of measured times, with images of your own",
        "eomt-deploy bench --engine tiny.onnx --image examples/scenes --iterations 20 "
        "--plot-latency latency.png",
        (
            check.prints("measuring 6 of 6 images in turn", "wrote latency.png"),
            check.is_picture("latency.png"),
        ),
        only=r"^measuring \d|^wrote",
    ),
)

COMMAND_LINE = (
    Row(
        "Help with examples, and values on TAB",
        """\
eomt-deploy predict -h
source <(eomt-deploy --show-completion)
COMP_WORDS=(eomt-deploy predict --palette '') COMP_CWORD=3
_eomt_deploy_completion eomt-deploy; echo "${COMPREPLY[@]}"   # what TAB shows""",
        (check.prints("Examples:\n  ", "\nclasses okabe-ito"),),
        only=r"^Usage|Examples:|^    eomt-deploy|^classes",
    ),
    Row(
        "Only some classes, with a minimum score",
        "eomt-deploy predict tiny.onnx examples/scenes/scene-1.png -o some.json "
        "--classes-only ball,water --conf 0.5",
        (
            check.prints("wrote some.json: Segmentation(panoptic, 240x320, 2 segments)"),
            check.classes_in("some.json", "ball", "water"),
        ),
    ),
    Row(
        "Files of other programs stay",
        """\
echo 'my notes' > notes.json
eomt-deploy predict tiny.onnx examples/scenes/scene-1.png -o notes.json
cat notes.json
eomt-deploy predict tiny.onnx examples/scenes/scene-1.png -o notes.json --overwrite""",
        (
            check.prints("which eomt-deploy did not write.", "\nmy notes\n", "wrote notes.json"),
            check.is_json("notes.json"),
        ),
        codes=(0, 2, 0, 0),
    ),
    Row(
        "What can be exported, with its licence, and what runs here",
        """\
eomt-deploy list --task instance --max-params 50
eomt-deploy doctor""",
        (check.prints("licence", "AGPL-3.0", "yes  run .onnx with onnxruntime on cpu"),),
        only=r"^ name|instance|^AGPL|feature|onnxruntime on cpu|read and write",
        masked=r"\b\d+\.\d+\.\d+\b",
    ),
    Row(
        "Errors that show the fix",
        """\
eomt-deploy export eomt-tiny-scenes -o m.onnx --size 250
eomt-deploy build tiny.onnx -o m.trt
eomt-deploy predict semantic.onnx examples/scenes -o o/ --score-threshold 0.5
eomt-deploy predict tiny.onnx examples/scenes""",
        (
            check.prints("--size 240 or --size 256", "-o m.engine", "an example:"),
            check.has_fixes(4),
        ),
        codes=(2, 2, 2, 2),
    ),
    Row(
        "A demo that needs no network",
        "eomt-deploy demo --no-open",
        (
            check.prints("6 overlays in eomt-demo/out/overlay"),
            check.result_folder("eomt-demo/out", 6),
        ),
        only=r"^\$|wrote|overlays",
        masked="(?<=after ).*",
    ),
)

GROUPS: dict[str, tuple[Row, ...]] = {
    "Sources": SOURCES,
    "Results": RESULTS,
    "Pictures": PICTURES,
    "Command line": COMMAND_LINE,
}
