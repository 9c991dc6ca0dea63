from __future__ import annotations

import numpy as np
import pytest
import torch
from host_twin import HostDevice, put, twin
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.backends import open_engine
from eomt_deploy.errors import ImageError, UsageError, VerificationError
from eomt_deploy.processing.cuda.kernels import Kernels
from eomt_deploy.sources import load_image
from eomt_deploy.spec import TASKS


def same(a, b) -> bool:
    if a.task == "semantic":
        return bool((a.class_map == b.class_map).all())
    first, second = a.segments, b.segments
    return len(first) == len(second) and all(
        x.class_id == y.class_id and (x.mask == y.mask).mean() > 0.999
        for x, y in zip(first[:5], second[:5], strict=True)
    )


@pytest.mark.parametrize("task", TASKS)
def test_every_kind_of_source_gives_one_result(exported, task, image_path):
    pixels = load_image(image_path)
    with Segmenter(exported(task)) as segmenter:
        result = segmenter.predict(image_path)
        assert result.task == task
        assert result.size == (400, 600)
        for source, order in (
            (str(image_path), "rgb"),
            (pixels, "rgb"),
            (pixels[:, :, ::-1], "bgr"),
            (Image.open(image_path), "rgb"),
        ):
            assert same(segmenter.predict(source, color_order=order), result)
        assert (result.image == pixels).all()
        assert result.overlay().size == (600, 400)


def test_the_channel_order_of_all_arrays(exported, image_path):
    pixels = load_image(image_path)
    with Segmenter(exported("semantic"), color_order="bgr") as segmenter:
        wanted = segmenter.predict(image_path)
        assert (wanted.image == pixels).all()  # a file defines its own
        for array in (pixels[:, :, ::-1], np.ascontiguousarray(pixels[:, :, ::-1])):
            assert (segmenter.predict(array).image == pixels).all()
        (result,) = segmenter.stream([pixels[:, :, ::-1]])
        assert (result.image == pixels).all()
        assert (segmenter.predict(pixels, color_order="rgb").image == pixels).all()
        for given, expected in zip(
            segmenter.logits(pixels[:, :, ::-1])[:2], segmenter.logits(image_path)[:2], strict=True
        ):
            assert (given == expected).all()
        with pytest.raises(UsageError, match="only for arrays"):
            segmenter.predict(image_path, color_order="bgr")
    with pytest.raises(UsageError, match="color_order must be"):
        Segmenter(exported("semantic"), color_order="gbr")


def test_what_a_segmenter_says_of_itself(exported):
    with Segmenter(exported("panoptic"), backend="onnxruntime", device="cpu") as segmenter:
        assert segmenter.warmup() is segmenter
        assert segmenter.names[2] == segmenter.classes[2].name
        text = repr(segmenter)
        assert "panoptic, 5 classes, fp32, 64x64, onnxruntime on cpu)" in text


def test_other_ways_to_call(exported, image_path, gradient, tmp_path):
    for name in ("b.png", "a.png"):
        Image.fromarray(gradient).save(tmp_path / name)
    with Segmenter(exported("panoptic")) as segmenter:
        one = segmenter.predict(image_path)
        assert same(segmenter(image_path), one)
        several = segmenter.predict([image_path, gradient])
        assert isinstance(several, list)
        assert same(several[0], one)
        for source in (tmp_path, str(tmp_path), str(tmp_path / "*.png")):
            assert len(list(segmenter.stream(source))) == 2
        with pytest.raises(ImageError, match="There is no image or folder"):
            segmenter.stream("nowhere")


@pytest.mark.parametrize("task", TASKS)
def test_batch_and_stream_equal_single_calls(exported, task, image_path, gradient):
    images = [image_path, gradient, np.ascontiguousarray(np.rot90(gradient))]
    with Segmenter(exported(task)) as segmenter:
        single = [segmenter.predict(image) for image in images]
        for results in (segmenter.predict_batch(images), list(segmenter.stream(images))):
            assert len(results) == 3
            assert all(same(a, b) for a, b in zip(single, results, strict=True))
        assert segmenter.predict_batch([]) == []


def test_thresholds_are_run_time_arguments(exported, image_path):
    with Segmenter(exported("instance")) as segmenter:
        everything = segmenter.predict(image_path).segments
        likely = segmenter.predict(image_path, score_threshold=0.3).segments
        assert len(everything) == 60  # 12 queries x 5 classes, all of them
        assert 0 < len(likely) < 60
        assert min(s.score for s in likely) >= 0.3
    with Segmenter(exported("semantic")) as segmenter, pytest.raises(UsageError):
        segmenter.predict(image_path, score_threshold=0.3)


def test_takes_an_open_engine(exported, gradient):
    engine = open_engine(exported("semantic"))
    with Segmenter(engine) as segmenter:
        assert segmenter.spec is engine.spec
        segmenter.predict(gradient)
    with pytest.raises(UsageError, match="closed"):
        segmenter.predict(gradient)


def test_bad_image(exported):
    with Segmenter(exported("semantic")) as segmenter, pytest.raises(ImageError):
        segmenter.predict("nowhere.jpg")


def test_long_images_run_a_bounded_number_of_windows_at_a_time(exported, monkeypatch):
    from eomt_deploy.backends import engine as module

    long = np.random.default_rng(0).integers(0, 256, (40, 400, 3), np.uint8)
    with Segmenter(exported("semantic")) as segmenter:
        wanted = segmenter.predict(long)
        monkeypatch.setattr(module, "MAX_INPUTS", 3)
        assert same(segmenter.predict(long), wanted)


def test_options_of_an_engine_that_is_open_already(exported):
    engine = open_engine(exported("semantic"))
    with pytest.raises(UsageError, match="already open"):
        Segmenter(engine, threads=2)


def test_batch_as_one_array(exported):
    images = np.zeros((2, 40, 50, 3), np.uint8)
    with Segmenter(exported("semantic")) as segmenter:
        assert len(segmenter.predict_batch(images)) == 2


def test_a_stream_goes_on_after_an_unreadable_image(exported, image_path, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with Segmenter(exported("panoptic")) as segmenter:
        for ahead in (0, 2):
            found = list(
                segmenter.stream([image_path, broken, image_path], ahead=ahead, return_errors=True)
            )
            assert isinstance(found[1], ImageError)
            assert same(found[0], found[2])
        results = segmenter.stream([image_path, broken, image_path])
        assert same(next(results), found[0])
        with pytest.raises(ImageError, match="broken"):
            next(results)


def test_a_stream_checks_its_arguments_at_once(exported):
    with Segmenter(exported("semantic")) as segmenter:
        with pytest.raises(UsageError, match="score threshold does not apply"):
            segmenter.stream([], score_threshold=0.5)
        with pytest.raises(UsageError, match="`ahead` must be 0 or more, got -1"):
            segmenter.stream([], ahead=-1)


def test_a_camera_that_fills_the_same_array_again(exported, image_path):
    frames = [load_image(image_path), np.ascontiguousarray(load_image(image_path)[::-1])]
    buffer = np.empty_like(frames[0])

    def camera():
        for frame in frames * 2:
            buffer[:] = frame
            yield buffer

    with Segmenter(exported("semantic")) as segmenter:
        wanted = [segmenter.predict(frame) for frame in frames * 2]
        for result, want in zip(segmenter.stream(camera(), ahead=0), wanted, strict=True):
            assert same(result, want)


@pytest.fixture
def broken(exported, tmp_path):
    """A model with NaN in its mask logits."""
    with Segmenter(exported("panoptic")) as segmenter:
        real = segmenter.engine.run

        def run(images):
            class_logits, mask_logits = real(images)
            mask_logits[-1, -1, -1, -1] = np.nan
            return class_logits, mask_logits

        segmenter.engine.run = run
        yield segmenter


def test_every_predict_method_refuses_a_model_that_gives_nan(broken, image_path, gradient):
    text = f"{broken.spec.name} (fp32, {broken.engine.backend}) gives NaN or infinite logits"
    with Image.open(image_path) as opened:
        named = f" on {image_path}."
        sources = [(image_path, named), (str(image_path), named), (opened, named), (gradient, ".")]
        for source, place in sources:
            calls = [
                lambda source=source: broken.predict(source),
                lambda source=source: broken.predict_batch([source]),
                *(
                    lambda source=source, ahead=ahead, keep=keep: next(
                        broken.stream([source], ahead=ahead, return_errors=keep)
                    )
                    for ahead in (0, 2)
                    for keep in (False, True)  # the model is the cause, not the image
                ),
            ]
            for call in calls:
                with pytest.raises(VerificationError) as error:
                    call()
                assert error.value.what == text + place


def test_a_batch_names_the_image_whose_logits_are_nan(broken, image_path, picture):
    with pytest.raises(VerificationError, match=picture.name):
        broken.predict_batch([image_path, picture])  # the last image of the batch is


class OnDevice:
    """An engine whose outputs stay on a simulated GPU."""

    backend = "tensorrt"
    path = None

    def __init__(self, engine, folder):
        self.spec, self.gpu, self._host = engine.spec, HostDevice(folder), engine
        with self.gpu.active():
            self.stream = self.gpu.stream()
        self.broken = False

    def run_device(self, images):
        outputs = [array.copy() for array in self._host.run(images.copy_to_host(self.stream))]
        if self.broken:
            outputs[1][0, -1, -1, -1] = -np.inf
        return tuple(put(self.gpu, array) for array in outputs)

    def close(self):
        self._host.close()


class GpuArray:
    """An array in the memory of a simulated GPU."""

    def __init__(self, gpu, values):
        self._array, self._values = put(gpu, values), values
        self.__cuda_array_interface__ = self._array.__cuda_array_interface__


class GpuTensor(GpuArray):
    """As a tensor of PyTorch."""

    def __dlpack__(self):
        raise AssertionError("torch exports only tensors in host memory to numpy")

    def cpu(self):
        return torch.from_numpy(self._values)


def test_images_on_a_gpu_stay_there(exported, tmp_path, gradient, monkeypatch):
    device = OnDevice(open_engine(exported("panoptic")), tmp_path)
    monkeypatch.setattr(
        "eomt_deploy.processing.cuda.processor.load_kernels", lambda gpu: Kernels(gpu, twin())
    )
    with Segmenter(device) as segmenter:
        wanted = segmenter.predict(gradient)
        bgr = np.ascontiguousarray(gradient[..., ::-1])
        for values, order in ((gradient, "rgb"), (bgr, "bgr")):
            found = segmenter.predict(GpuArray(device.gpu, values), color_order=order)
            np.testing.assert_array_equal(found.labels, wanted.labels)
            assert found.image is None
        # Channels first: converted on the CPU.
        first = np.ascontiguousarray(np.moveaxis(gradient, 2, 0))
        found = segmenter.predict(GpuTensor(device.gpu, first))
        np.testing.assert_array_equal(found.labels, wanted.labels)
        np.testing.assert_array_equal(found.image, gradient)


def test_logits_on_a_gpu_are_checked_there(exported, tmp_path, image_path, gradient, monkeypatch):
    device = OnDevice(open_engine(exported("panoptic")), tmp_path)
    monkeypatch.setattr(
        "eomt_deploy.processing.cuda.processor.load_kernels", lambda gpu: Kernels(gpu, twin())
    )
    with Segmenter(device) as segmenter:
        segmenter.predict(image_path)
        device.broken = True
        text = f"{device.spec.name} (fp32, tensorrt) gives NaN or infinite logits"
        for predict in (segmenter.predict, lambda image: next(segmenter.stream([image]))):
            for source, place in ((image_path, f" on {image_path}."), (gradient, ".")):
                with pytest.raises(VerificationError) as error:
                    predict(source)
                assert error.value.what == text + place


def test_what_has_several_images_is_for_stream(exported, tmp_path, image_path):
    clip = tmp_path / "clip.mp4"
    clip.write_bytes(b"")
    missing = tmp_path / "missing.mp4"
    with Segmenter(exported("panoptic")) as segmenter:
        several = (clip, str(clip), tmp_path, str(tmp_path / "*.png"), 0, "rtsp://me:secret@cam/a")
        for source in several:
            with pytest.raises(ImageError, match="is a video, camera, folder or glob") as caught:
                segmenter.predict(source)
            assert "segmenter.stream(" in caught.value.fix
            assert "secret" not in str(caught.value)
        for source, words in ((missing, "There is no image at"), (None, "type NoneType is not")):
            with pytest.raises(ImageError, match=words):
                segmenter.predict(source)


@pytest.mark.shared_data
def test_the_model_that_gave_no_segments(shared, cli, tmp_path):
    model, image = (shared / "cases" / "nan" / name for name in ("panoptic_nan.onnx", "d.png"))
    for arguments in (
        ("predict", model, image, "-o", tmp_path / "o"),
        ("predict", model, image, "-o", tmp_path / "o.png", "--backend", "onnxruntime"),
        ("bench", "--engine", model, "--image", image, "--iterations", 2),
    ):
        code, _, err = cli(*arguments)
        assert code == 4
        assert "gives NaN or infinite logits on" in err
        assert image.name in err
