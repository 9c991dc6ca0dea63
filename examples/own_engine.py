"""Run the model with your own ONNX Runtime session; eomt-deploy only prepares and finishes.

    python examples/own_engine.py model.onnx street.jpg

Use this if your program already has an inference server or another backend. All that it needs is
the description in the file, and a function from `images` to `class_logits` and `mask_logits`.
"""

from __future__ import annotations

import sys

import onnxruntime as ort

from eomt_deploy import ModelSpec, Processor, Segmentation


def predict(model: str, image: str) -> Segmentation:
    """The result for one image, without an engine of eomt-deploy."""
    session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
    description = session.get_modelmeta().custom_metadata_map["eomt_deploy.spec"]
    processor = Processor(ModelSpec.from_json(description))

    # uint8 [N, H, W, 3] in RGB; N is 1, or the number of windows of a semantic model.
    # The geometry remembers where they are in the image.
    images, geometry = processor.preprocess(image)

    # [N, Q, C + 1] and [N, Q, H / 4, W / 4]
    class_logits, mask_logits = session.run(["class_logits", "mask_logits"], {"images": images})

    return processor.postprocess(class_logits, mask_logits, geometry)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    result = predict(*sys.argv[1:])
    print(result)
    for region in result.regions():
        print(region.class_name, f"{region.score:.2f}", region.box)
