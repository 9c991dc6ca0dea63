"""`predict` on videos: what it reads, writes, keeps and refuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import av
import forked
import numpy as np
import pytest
from clips import mjpeg_server, write_clip
from hotcoco import mask as coco_mask
from PIL import Image

from eomt_deploy import Segmenter, open_video
from eomt_deploy.outputs import is_ours
from eomt_deploy.video import VideoFile

VIDEOS = (*forked.IMAGES, "eomt_deploy.cli.predict_video", "av")


@pytest.fixture(scope="module")
def photo(image_path_of_module):
    return np.asarray(Image.open(image_path_of_module).resize((96, 64)))


@pytest.fixture(scope="module")
def image_path_of_module():
    from eomt_deploy.sources import built_in_images

    return built_in_images()[0]


@pytest.fixture(scope="module")
def clip(tmp_path_factory, photo):
    """A photo that moves to the left, 12 frames at 25 FPS with sound."""
    path = tmp_path_factory.mktemp("clip") / "clip.mp4"
    times = [i / 25 for i in range(12)]
    frame = lambda i: np.ascontiguousarray(np.roll(photo, -4 * i, axis=1))  # noqa: E731
    return write_clip(path, times, frame=frame, sound=True)


def lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("task", ["panoptic", "semantic", "instance"])
def test_a_folder_receives_overlays_labels_and_lines(cli, exported, clip, tmp_path, task):
    model, folder = exported(task), tmp_path / "out"
    code, out, err = cli("predict", model, clip, "-o", folder, *threshold(task))
    assert code == 0, err
    assert "wrote 12 frames of" in out
    names = {"clip.mp4", "clip.labels.mkv", "clip.jsonl"}
    if task == "instance":  # instances overlap
        names.remove("clip.labels.mkv")
    assert {path.name for path in folder.iterdir()} == names
    assert all(map(is_ours, folder.iterdir()))
    with Segmenter(model) as segmenter:
        options = {"score_threshold": 0.0} if task != "semantic" else {}
        wanted = list(segmenter.stream(str(clip), **options))
    assert [result.time for result in wanted] == pytest.approx(
        [i / 25 for i in range(12)], abs=1e-3
    )
    with av.open(str(folder / "clip.mp4")) as overlays:
        assert [s.type for s in overlays.streams] == ["video", "audio"]
        assert sum(1 for _ in overlays.decode(video=0)) == 12
    found = lines(folder / "clip.jsonl")
    assert [line["frame"] for line in found] == list(range(12))
    for line, result in zip(found, wanted, strict=True):
        assert line["time"] == result.time
        assert (line["height"], line["width"]) == result.size == (64, 96)
        for annotation, segment in zip(line["annotations"], result, strict=True):
            mask = coco_mask.decode(annotation["segmentation"]).astype(bool)
            np.testing.assert_array_equal(mask, segment.mask)
    if task != "instance":
        with av.open(str(folder / "clip.labels.mkv")) as labels:
            for frame, result in zip(labels.decode(video=0), wanted, strict=True):
                image = np.asarray(result.label_image())
                have = frame.to_ndarray(**({"format": "rgb24"} if image.ndim == 3 else {}))
                np.testing.assert_array_equal(have, image)


def threshold(task):
    return () if task == "semantic" else ("--conf", "0.0")


def test_one_file_and_a_range(cli, exported, clip, tmp_path):
    target = tmp_path / "seen.mkv"
    code, _, err = cli(
        "predict", exported("panoptic"), clip, "-o", target, "--start", "0.1", "--end", "0.4",
        "--every", "2",
    )  # fmt: skip
    assert code == 0, err
    with VideoFile(target) as video:
        assert [f.time for f in video] == pytest.approx([0, 0.08, 0.16, 0.24], abs=2e-3)
    code, _, err = cli("predict", exported("panoptic"), clip, "-o", target)  # it is ours
    assert code == 0, err


def test_classes_and_several_videos(cli, exported, clip, tmp_path):
    other = tmp_path / "clip.mp4"
    other.write_bytes(clip.read_bytes())
    with Segmenter(exported("semantic")) as segmenter:
        name = segmenter.predict(next(iter(open_video(clip))).pixels).class_names[0]
    code, _, err = cli(
        "predict", exported("semantic"), clip, other, "-o", tmp_path / "out",
        "--classes-only", name, "--end", "0.1",
    )  # fmt: skip
    assert code == 0, err
    for stem in ("clip", "clip (2)"):
        (found,) = {
            annotation["category_name"]
            for line in lines(tmp_path / f"out/{stem}.jsonl")
            for annotation in line["annotations"]
        }
        assert found == name


def test_errors(cli, exported, clip, image_path, tmp_path):
    model, out = exported("instance"), tmp_path / "out"
    other = tmp_path / "other.mp4"
    other.write_bytes(clip.read_bytes())
    for arguments, words in [
        ((clip, image_path, "-o", out), "cannot be predicted together"),
        ((clip, other, "-o", tmp_path / "x.mp4"), "do not fit into one file"),
        ((clip, "-o", tmp_path / "x.gif"), "cannot be written as .gif"),
        ((clip, "-o", tmp_path / "x.labels.mkv"), "Instances can overlap"),
        ((clip, "-o", clip), "-o would replace"),
        ((clip, "-o", out, "--resume"), "--resume is for images"),
        ((clip, "-o", out, "--json", tmp_path / "x.json"), "--json is for images"),
        ((image_path, "-o", out, "--every", "2"), "--every is for videos"),
        ((clip, "-o", out, "--start", "3", "--end", "2"), "end must be later"),
        ((clip, "-o", out, "--every", "0"), "every must be 1 or more"),
        ((clip, "-o", out, "--conf", "7"), "score threshold must be between 0 and 1"),
        ((tmp_path / "none.mp4", "-o", out), "No such file"),
        (("rtsp://me:secret@127.0.0.1:9/x", "-o", out), "Connection refused"),
    ]:
        code, _, err = cli("predict", model, *arguments)
        assert code == 2, arguments
        assert words in err
        assert "fix:" in err
        assert "secret" not in err
    assert not out.exists() or not list(out.iterdir())
    code, _, err = cli("predict", model, "91", "-o", out)
    assert code == 3
    assert "Camera 91" in err


def test_the_same_video_twice_and_an_upper_case_suffix(cli, exported, clip, tmp_path):
    model = exported("semantic")
    code, _, err = cli("predict", model, clip, clip, "-o", tmp_path / "x.JSONL", "--end", "0.1")
    assert code == 0, err
    assert len(lines(tmp_path / "x.JSONL")) == 3


def test_sound_that_no_webm_can_contain_is_converted(cli, exported, tmp_path, photo):
    path = write_clip(tmp_path / "a.mkv", [0, 0.04], frame=lambda _: photo)
    model, source = exported("semantic"), tmp_path / "pcm.mkv"
    with av.open(str(path)) as original, av.open(str(source), "w") as target:
        picture = target.add_stream_from_template(original.streams.video[0])
        sound = target.add_stream("pcm_s16le", rate=8000)
        for packet in original.demux(video=0):
            if packet.size:
                packet.stream = picture
                target.mux(packet)
        samples = av.AudioFrame.from_ndarray(np.zeros((1, 800), np.int16), "s16", "mono")
        samples.sample_rate, samples.pts = 8000, 0
        target.mux(sound.encode(samples))
    code, _, err = cli("predict", model, source, "-o", tmp_path / "x.mov")
    assert code == 0, err
    with av.open(str(tmp_path / "x.mov")) as video:
        assert [s.codec_context.name for s in video.streams.audio] == ["pcm_s16le"]
    code, _, err = cli("predict", model, source, "-o", tmp_path / "x.webm")
    assert code == 0, err
    assert "the sound of x.webm is converted from pcm_s16le to Opus" in err
    with av.open(str(tmp_path / "x.webm")) as video:
        (track,) = video.streams.audio
        assert track.codec_context.name.endswith("opus")
    assert len(list(VideoFile(tmp_path / "x.webm"))) == 2


def test_a_link_is_followed_and_a_pipe_is_refused(cli, exported, clip, tmp_path):
    (tmp_path / "link.mp4").symlink_to(tmp_path / "real.mp4")
    options = ("--end", "0.1")
    code, _, err = cli("predict", exported("semantic"), clip, "-o", tmp_path / "link.mp4", *options)
    assert code == 0, err
    assert (tmp_path / "link.mp4").is_symlink()
    assert is_ours(tmp_path / "real.mp4")
    os.mkfifo(tmp_path / "pipe.mp4")
    code, _, err = cli("predict", exported("semantic"), clip, "-o", tmp_path / "pipe.mp4", *options)
    assert code == 2
    assert "not a regular file" in err


def test_names_and_messages_have_no_password(cli, exported, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/127.0.0.mp4").write_text("mine")
    for address in (
        "rtsp://admin:secret@127.0.0.1:9", "http://127.0.0.1:9/a.jpg?token=secret",
        "http://me:secret@127.0.0.1:9/a.jpg", "http://me:sec/ret@127.0.0.1:9/x#a.jpg",
        "http://[::1/secret.jpg",
    ):  # fmt: skip
        code, out, err = cli("predict", exported("semantic"), address, "-o", tmp_path / "out")
        assert code == 2, err
        assert "error" in err
        assert "sec" not in (out + err).replace("secret.jpg", "")  # the name of an image


def test_a_foreign_video_is_not_replaced(cli, exported, clip, tmp_path):
    target = tmp_path / "holiday.mp4"
    target.write_bytes(clip.read_bytes())
    code, _, err = cli("predict", exported("semantic"), clip, "-o", target)
    assert code == 2
    assert "did not write" in err
    assert target.read_bytes() == clip.read_bytes()
    code, _, err = cli(
        "predict", exported("semantic"), clip, "-o", target, "--overwrite", "--end", "0.1"
    )
    assert code == 0, err


def test_a_stream_with_a_duration(cli, exported, tmp_path):
    with mjpeg_server() as address:
        code, out, err = cli(
            "predict", exported("semantic"), address, "-o", tmp_path / "x.jsonl", "--end", "1.5"
        )
    assert code == 0, err
    assert "secret" not in out + err
    found = lines(tmp_path / "x.jsonl")
    assert len(found) >= 2
    times = [line["time"] for line in found]
    assert times == sorted(times)
    assert times[-1] < 1.5


def test_ctrl_c_ends_a_stream_and_completes_its_files(exported, tmp_path):
    folder = tmp_path / "out"
    with mjpeg_server() as address:
        process = forked.start(
            ["predict", exported("semantic"), address, "-o", folder], imports=VIDEOS
        )
        deadline = time.monotonic() + 60
        while not count_lines(folder) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 0, err
    assert "wrote" in out
    assert {path.name for path in folder.iterdir()} == {
        "camera.mp4", "camera.labels.mkv", "camera.jsonl",
    }  # fmt: skip
    with VideoFile(folder / "camera.mp4") as video:
        assert len(list(video)) == count_lines(folder)


def count_lines(folder):
    """Lines in all JSON lines files, also in staged ones."""
    return sum(path.read_text().count("\n") for path in folder.rglob("*.jsonl"))


def test_the_memory_for_an_hour_of_video_is_constant(exported, tmp_path):
    """One frame every six seconds for an hour."""
    frame = np.full((64, 96, 3), 90, np.uint8)
    path = write_clip(tmp_path / "hour.mp4", range(0, 3600, 6), frame=lambda _: frame)
    code = (
        "import resource, sys; from eomt_deploy import Segmenter\n"
        "count, early = 0, 0\n"
        "with Segmenter(sys.argv[1]) as segmenter:\n"
        "    for result in segmenter.stream(sys.argv[2]):\n"
        "        count += 1\n"
        "        if count == 300:\n"
        "            early = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(count, result.time, early, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(exported("semantic")), str(path)],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    count, last, early, late = done.stdout.split()
    assert (int(count), float(last)) == (600, 3594.0)
    assert int(late) - int(early) < 4096  # KiB


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit for the size of files")
def test_lines_that_fit_on_the_disk_are_kept(exported, clip, tmp_path):
    target = tmp_path / "x.jsonl"
    limit = 2500
    code = (
        f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))\n"
        "from eomt_deploy.cli import main; import sys; main(sys.argv[1:])\n"
    )
    process = forked.start(
        ["predict", exported("semantic"), clip, "-o", target, "--backend", "onnxruntime"],
        code=code, imports=VIDEOS,
    )  # fmt: skip
    _, err = process.communicate(timeout=60)
    assert process.returncode != 0
    assert "Traceback" not in err
    assert 0 < target.stat().st_size <= limit
    assert all("annotations" in line for line in lines(target))
