"""All targets of the fuzzers."""

from __future__ import annotations

from . import seed_weights
from .contract import MiB, Target
from .target_data import (
    class_files,
    dataset_files,
    mutate_classes,
    mutate_dataset,
    mutate_report,
    report_files,
    run_classes,
    run_dataset,
    run_report,
)
from .target_images import (
    image_files,
    mutate_images,
    mutate_recipes,
    run_image,
    run_recipe,
    valid_recipes,
)
from .target_models import (
    mutate_description,
    mutate_onnx,
    mutate_package,
    mutate_sidecar,
    mutate_xml,
    run_description,
    run_onnx,
    run_package,
    run_sidecar,
    run_xml,
    sidecar_files,
    valid_onnx,
    valid_packages,
    valid_specs,
    xml_files,
)
from .target_weights import (
    checkpoint_files,
    mutate_checkpoint_keys,
    mutate_checkpoint_zip,
    mutate_huggingface,
    mutate_safetensors,
    run_checkpoint_file,
    run_folder_checkpoint,
    safetensors_files,
)

LARGEST_IMAGE = 1300 * MiB
"""100 megapixels: 4 bytes each in Pillow, twice if the mode is converted, and 3 in the result."""

ALL = (
    Target("image", image_files, mutate_images, run_image, share=30, memory=LARGEST_IMAGE),
    Target("source", valid_recipes, mutate_recipes, run_recipe, share=2),
    Target("description", valid_specs, mutate_description, run_description, share=20),
    Target("onnx", valid_onnx, mutate_onnx, run_onnx, share=12),
    Target("sidecar", sidecar_files, mutate_sidecar, run_sidecar),
    Target("openvino-xml", xml_files, mutate_xml, run_xml, share=5),
    Target("pt2", valid_packages, mutate_package, run_package),
    Target("checkpoint-zip", checkpoint_files, mutate_checkpoint_zip, run_checkpoint_file),
    Target("checkpoint-keys", checkpoint_files, mutate_checkpoint_keys, run_checkpoint_file),
    Target("safetensors", safetensors_files, mutate_safetensors, run_checkpoint_file),
    Target(
        "huggingface", seed_weights.huggingface_folders, mutate_huggingface, run_folder_checkpoint
    ),
    Target("classes", class_files, mutate_classes, run_classes),
    Target("dataset", dataset_files, mutate_dataset, run_dataset, share=15, memory=LARGEST_IMAGE),
    Target("report", report_files, mutate_report, run_report, share=5),
)
TARGETS = {target.name: target for target in ALL}
