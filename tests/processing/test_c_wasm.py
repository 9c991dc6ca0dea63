"""The WebAssembly build of the C library, run by Node, gives what Python gives."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from c_library import RELEASE, picture
from cuda_place import make_logits
from made_up_logits import make_spec

from eomt_deploy.processing import Processor, compiled
from eomt_deploy.spec import TASKS

NODE = shutil.which("node")
WASM = compiled.FOLDER / "eomt.wasm"
pytestmark = [
    pytest.mark.skipif(NODE is None, reason="Node is not installed"),
    pytest.mark.skipif(not WASM.exists(), reason="eomt.wasm was not built: pip install -e ."),
]


def run(folder: Path, spec, image, classes, masks) -> dict:
    """The segments and times of the module; the arrays are in files of the folder."""
    rgba = np.dstack([image, np.zeros(image.shape[:2], np.uint8)])
    for name, data in (("image", rgba), ("classes", classes), ("masks", masks)):
        (folder / f"{name}.bin").write_bytes(np.ascontiguousarray(data).tobytes())
    (folder / "spec.json").write_text(spec.to_json(), encoding="utf-8")
    job = {
        "wasm": str(WASM), "height": image.shape[0], "width": image.shape[1], "pillow": RELEASE,
        "thresholds": [-1, -1, 0.1],
    }  # fmt: skip
    (folder / "job.json").write_text(json.dumps(job))
    script = Path(__file__).parents[1] / "c_wasm.mjs"
    done = subprocess.run([NODE, script, folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "result.json").read_text())


@pytest.mark.parametrize("size", [(427, 640), (900, 300)])
@pytest.mark.parametrize("task", TASKS)
def test_inputs_and_results(task, size, tmp_path):
    spec = make_spec(task, (160, 160), 60, 30)
    image = picture(*size)
    processor = Processor(spec)
    inputs, geometry = processor.preprocess(image)
    classes, masks = make_logits(spec, len(inputs), 3)
    overlap = {"overlap_threshold": 0.1} if task == "panoptic" else {}
    wanted = processor.postprocess(classes, masks, geometry, **overlap)
    found = run(tmp_path, spec, image, classes, masks)
    assert (tmp_path / "inputs.bin").read_bytes() == inputs.tobytes()
    labels = (tmp_path / "labels.bin").read_bytes()
    assert labels == (b"" if wanted.labels is None else wanted.labels.tobytes())
    assert len(found["segments"]) == len(wanted.segments)
    for segment, theirs in zip(wanted.segments, found["segments"], strict=True):
        assert theirs["class"] == segment.class_id
        assert theirs["name"] == segment.class_name
        assert theirs["score"] == segment.score
        assert theirs["area"] == segment.area
        assert tuple(theirs["box"]) == segment.box
        if task == "instance":
            assert theirs["runs"] == segment.pixels.__self__.runs.ravel().tolist()
