from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.engines import open_engine
from eomt_deploy.errors import ImageError, UsageError
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
def test_every_kind_of_source_gives_one_result(exported, task, photo):
    pixels = load_image(photo)
    with Segmenter(exported(task)) as segmenter:
        result = segmenter.predict(photo)
        assert result.task == task
        assert result.size == (400, 600)
        for source, order in (
            (str(photo), "rgb"),
            (pixels, "rgb"),
            (pixels[:, :, ::-1], "bgr"),
            (Image.open(photo), "rgb"),
        ):
            assert same(segmenter.predict(source, color_order=order), result)
        assert (result.image == pixels).all()
        assert result.overlay().size[0] >= 600


@pytest.mark.parametrize("task", TASKS)
def test_batch_and_stream_equal_single_calls(exported, task, photo, gradient):
    images = [photo, gradient, np.ascontiguousarray(np.rot90(gradient))]
    with Segmenter(exported(task)) as segmenter:
        single = [segmenter.predict(image) for image in images]
        for results in (segmenter.predict_batch(images), list(segmenter.stream(images))):
            assert len(results) == 3
            assert all(same(a, b) for a, b in zip(single, results, strict=True))
        assert segmenter.predict_batch([]) == []


def test_thresholds_are_run_time_arguments(exported, photo):
    with Segmenter(exported("instance")) as segmenter:
        everything = segmenter.predict(photo).segments
        likely = segmenter.predict(photo, score_threshold=0.3).segments
        assert len(everything) == 60  # 12 queries x 5 classes, all of them
        assert 0 < len(likely) < 60
        assert min(s.score for s in likely) >= 0.3
    with Segmenter(exported("semantic")) as segmenter, pytest.raises(UsageError):
        segmenter.predict(photo, score_threshold=0.3)


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


def test_long_photos_run_a_bounded_number_of_windows_at_a_time(exported, monkeypatch):
    from eomt_deploy import segmenter as module

    long = np.random.default_rng(0).integers(0, 256, (40, 400, 3), np.uint8)
    with Segmenter(exported("semantic")) as segmenter:
        wanted = segmenter.predict(long)
        monkeypatch.setattr(module, "MAX_INPUTS", 3)
        assert same(segmenter.predict(long), wanted)


def test_options_of_an_engine_that_is_open_already(exported):
    engine = open_engine(exported("semantic"))
    with pytest.raises(UsageError, match="open already"):
        Segmenter(engine, threads=2)


def test_batch_as_one_array(exported):
    images = np.zeros((2, 40, 50, 3), np.uint8)
    with Segmenter(exported("semantic")) as segmenter:
        assert len(segmenter.predict_batch(images)) == 2


def test_a_stream_goes_on_after_an_unreadable_image(exported, photo, tmp_path):
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"no picture")
    with Segmenter(exported("panoptic")) as segmenter:
        for ahead in (0, 2):
            found = list(segmenter.stream([photo, broken, photo], ahead=ahead, return_errors=True))
            assert isinstance(found[1], ImageError)
            assert same(found[0], found[2])
        results = segmenter.stream([photo, broken, photo])
        assert same(next(results), found[0])
        with pytest.raises(ImageError, match="broken"):
            next(results)


def test_a_stream_checks_its_arguments_at_once(exported):
    with Segmenter(exported("semantic")) as segmenter:
        with pytest.raises(UsageError, match="no score threshold"):
            segmenter.stream([], score_threshold=0.5)
        with pytest.raises(UsageError, match="ahead -1"):
            segmenter.stream([], ahead=-1)


def test_a_camera_that_fills_the_same_array_again(exported, photo):
    frames = [load_image(photo), np.ascontiguousarray(load_image(photo)[::-1])]
    buffer = np.empty_like(frames[0])

    def camera():
        for frame in frames * 2:
            buffer[:] = frame
            yield buffer

    with Segmenter(exported("semantic")) as segmenter:
        wanted = [segmenter.predict(frame) for frame in frames * 2]
        for result, want in zip(segmenter.stream(camera(), ahead=0), wanted, strict=True):
            assert same(result, want)
