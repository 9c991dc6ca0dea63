"""Allocations, copies and synchronization of CudaProcessor, on a simulated GPU."""

from __future__ import annotations

import gc

import numpy as np
import pytest
from cuda_place import Place, make_logits, make_spec
from host_twin import HostDevice, put, twin
from PIL import Image

from eomt_deploy.cuda import DeviceArray
from eomt_deploy.processing import Processor
from eomt_deploy.processing.cuda import instance
from eomt_deploy.processing.geometry import plan
from eomt_deploy.spec import TASKS, Thresholds


@pytest.fixture
def host(tmp_path) -> Place:
    return Place(HostDevice(tmp_path), twin())


@pytest.mark.parametrize("task", TASKS)
def test_nothing_is_allocated_once_sizes_are_known(host, task, image_path):
    spec = make_spec(task)
    with Image.open(image_path) as picture:
        pictures = [picture.resize(size) for size in ((90, 70), (70, 90), (80, 80))]
    for seed in range(3):
        before = host.device.allocations
        for picture in pictures:
            inputs, geometry = host.processor(spec).preprocess(picture)
            logits = make_logits(spec, len(inputs), seed)
            arrays = [put(host.device, array) for array in logits]
            before += len(arrays)
            host.processor(spec).postprocess(*arrays, geometry)
        if seed > 0:
            assert host.device.allocations == before


@pytest.mark.parametrize("task", TASKS)
def test_only_the_result_crosses_the_bus(host, task):
    spec = make_spec(task)
    height, width = 90, 200
    geometry = plan((height, width), (64, 64), spec.resize)
    classes, masks = make_logits(spec, geometry.num_inputs, 1)
    before = host.device.bytes_to_host
    host.postprocess(spec, classes, masks, geometry)
    small = 2048 + 128 * spec.num_queries
    large = 8 * instance.FIRST_RUNS if task == "instance" else height * width
    assert host.device.bytes_to_host - before <= large + small
    host.processor(spec).close()
    host.device.check_guards()


@pytest.mark.parametrize("seed", range(5))
def test_work_of_other_streams_is_waited_for(tmp_path, seed):
    """Other streams still write the logits and the image when the processor is called."""
    device = HostDevice(tmp_path, seed, lazy=seed > 2)
    place = Place(device, twin())
    spec = make_spec("panoptic")
    image = np.random.default_rng(seed).integers(0, 256, (50, 60, 3), np.uint8)
    classes, masks = make_logits(spec, 1, seed)
    wanted_inputs, geometry = Processor(spec).preprocess(image)
    anything = Thresholds(0, 0.5, 0)
    wanted = Processor(spec).postprocess_with(classes, masks, geometry, anything)
    assert wanted.segments
    with device.active():
        arrays = []
        for values in (image, classes, masks):
            other = device.stream()
            array = DeviceArray.empty(device, values.shape, values.dtype)
            array.stream = other
            device.to_device(array.pointer, values, other)
            arrays.append(array)
    inputs, _ = place.processor(spec).preprocess(arrays[0])
    found = place.processor(spec).postprocess_with(*arrays[1:], geometry, anything)
    np.testing.assert_array_equal(inputs.copy_to_host(), wanted_inputs)
    np.testing.assert_array_equal(found.segment_map, wanted.segment_map)


@pytest.mark.parametrize("seed", range(20))
def test_image_on_the_gpu_may_be_overwritten_at_once(tmp_path, seed):
    device = HostDevice(tmp_path, seed, lazy=True)
    with device.active():
        writer = device.stream()  # older than our stream: its work is done first if possible
    place = Place(device, twin())
    spec = make_spec("panoptic")
    image = np.random.default_rng(seed).integers(1, 256, (50, 60, 3), np.uint8)
    wanted, _ = Processor(spec).preprocess(image)
    device_image = put(device, image, writer)
    found, _ = place.processor(spec).preprocess(device_image)
    with device.active():
        device.fill_zero(device_image.pointer, device_image.nbytes, writer)
        device.synchronize(writer)
    np.testing.assert_array_equal(found.copy_to_host(), wanted)


def test_image_on_the_gpu_is_kept_until_the_next(host):
    spec = make_spec("panoptic")
    device_image = put(host.device, np.zeros((50, 60, 3), np.uint8))
    pointer = device_image.pointer
    host.processor(spec).preprocess(device_image)
    del device_image
    gc.collect(1)
    assert pointer in host.device.live
    host.processor(spec).preprocess(put(host.device, np.zeros((50, 60, 3), np.uint8)))
    gc.collect(1)
    assert pointer not in host.device.live


@pytest.mark.parametrize("seed", range(5))
def test_images_may_follow_each_other_at_once(tmp_path, seed):
    """Buffers are not overwritten before they were used, even without synchronization."""
    device = HostDevice(tmp_path, seed, lazy=seed > 2)
    place = Place(device, twin())
    spec = make_spec("panoptic")
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(0, 256, (*rng.integers(40, 90, 2), 3), np.uint8) for _ in range(6)]
    batch = DeviceArray.empty(device, (len(arrays), 64, 64, 3), np.uint8)
    for index, image in enumerate(arrays):
        inputs, _ = place.processor(spec).preprocess(image)
        with device.active():
            row = batch.rows(index, index + 1)
            device.copy(row.pointer, inputs.pointer, row.nbytes, place.stream)
    found = batch.copy_to_host(place.stream)
    wanted = np.concatenate([Processor(spec).preprocess(image)[0] for image in arrays])
    np.testing.assert_array_equal(found, wanted)
