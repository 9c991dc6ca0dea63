"""Reading video files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from clips import file_server, number_of, set_display_matrix, turn_clockwise, write_clip

from eomt_deploy import Segmenter, open_video
from eomt_deploy.errors import ImageError, MissingDependencyError, UsageError
from eomt_deploy.video import Frame, VideoFile, is_video

TIMES = [i / 25 for i in range(30)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", TIMES, sound=True)


def frames(path: Path | str, **options: float | None) -> list[Frame]:
    with open_video(path, **options) as video:
        return list(video)


def test_frames_and_times(clip: Path):
    with VideoFile(clip) as video:
        assert (video.size, float(video.rate), video.count) == ((48, 64), 25, 30)
        found = list(video)
        assert video.remarks == ()
    assert [number_of(frame.pixels) for frame in found] == list(range(30))
    assert [frame.time for frame in found] == pytest.approx(TIMES, abs=1e-3)
    assert [frame.number for frame in found] == list(range(30))
    assert found[0].pixels.dtype == np.uint8


def test_colours(tmp_path: Path):
    colours = np.zeros((64, 96, 3), np.uint8)
    colours[:, :32], colours[:, 32:64], colours[:, 64:] = (
        (200, 30, 30),
        (30, 200, 30),
        (30, 30, 200),
    )
    path = write_clip(tmp_path / "c.mp4", [0, 0.04], frame=lambda _: colours)
    pixels = frames(path)[0].pixels
    for column in (16, 48, 80):
        np.testing.assert_allclose(pixels[32, column], colours[32, column], atol=6)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov", ".avi"])
def test_formats(tmp_path: Path, suffix: str):
    path = write_clip(tmp_path / f"x{suffix}", TIMES[:6])
    assert [number_of(frame.pixels) for frame in frames(path)] == list(range(6))


def test_webm(tmp_path: Path):
    path = write_clip(tmp_path / "x.webm", TIMES[:6], codec="libvpx-vp9")
    assert [number_of(frame.pixels) for frame in frames(path)] == list(range(6))


def test_irregular_times(tmp_path: Path):
    times = [0, 0.1, 0.15, 0.7, 0.71, 2.0]
    path = write_clip(tmp_path / "vfr.mp4", times)
    assert [frame.time for frame in frames(path)] == pytest.approx(times, abs=1e-3)


@pytest.mark.parametrize(
    ("options", "wanted"),
    [
        ({"every": 4}, range(0, 30, 4)),
        ({"start": 0.5}, range(13, 30)),  # not at a key frame
        ({"end": 0.2}, range(5)),
        ({"start": 0.2, "end": 0.6, "every": 3}, (5, 8, 11, 14)),
    ],
)
def test_ranges(clip: Path, options: dict[str, float], wanted: range | tuple[int, ...]):
    with open_video(clip, **options) as video:
        expected = video.count
        found = [number_of(frame.pixels) for frame in video]
    assert found == list(wanted)
    assert abs(expected - len(found)) <= 1


def test_rotation(tmp_path: Path):
    path = write_clip(tmp_path / "phone.mp4", TIMES[:3])
    turn_clockwise(path)
    with VideoFile(path) as video:
        assert video.size == (64, 48)
        upright = next(iter(video)).pixels
    assert upright.shape == (64, 48, 3)
    assert upright[5, 40, 0] > 180  # the red corner is top right now
    assert upright[5, 5, 0] < 90


@pytest.mark.parametrize(
    ("matrix", "shown"),
    [
        ((1, 0, 0, 1), lambda p: p),
        ((-1, 0, 0, 1), lambda p: p[:, ::-1]),  # mirrored, as a selfie
        ((1, 0, 0, -1), lambda p: p[::-1]),
        ((-1, 0, 0, -1), lambda p: p[::-1, ::-1]),
        ((0, 1, -1, 0), lambda p: np.rot90(p, -1)),
        ((0, -1, 1, 0), lambda p: np.rot90(p)),
        ((0, 1, 1, 0), lambda p: p.transpose(1, 0, 2)),
        ((0, -1, -1, 0), lambda p: p.transpose(1, 0, 2)[::-1, ::-1]),
    ],
)
def test_turned_and_mirrored_videos(tmp_path: Path, matrix, shown):
    path = write_clip(tmp_path / "phone.mp4", TIMES[:2])
    with VideoFile(path) as video:
        stored = next(iter(video)).pixels
    set_display_matrix(path, *matrix)
    with VideoFile(path) as video:
        found = next(iter(video)).pixels
        assert video.size == found.shape[:2]
    np.testing.assert_array_equal(found, shown(stored))


def test_damaged_parts_are_left_out(tmp_path: Path):
    path = write_clip(tmp_path / "damaged.mp4", TIMES)
    content = bytearray(path.read_bytes())
    middle = content.index(b"mdat") + 504
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    with VideoFile(path) as video:
        found = list(video)
        assert 10 < len(found) < 30
        assert "damaged parts of" in video.remarks[0]


@pytest.mark.parametrize("suffix", [".ts", ".flv", ".avi", ".mkv"])
def test_a_start_time_skips_no_frame_in_any_format(tmp_path: Path, suffix: str):
    """Some formats seek to a place after the wanted frame, and AVI has times in another order."""
    path = write_clip(tmp_path / f"x{suffix}", TIMES)
    every = [frame.time for frame in frames(path)]
    assert len(every) == len(TIMES)
    assert every == sorted(every)
    for start in (0.01, 0.3, 0.5, 0.85, 1.1):
        found = [frame.time for frame in frames(path, start=start)]
        assert found == [time for time in every if time >= start]


def test_a_server_that_cannot_send_parts(tmp_path: Path):
    path = write_clip(tmp_path / "x.mkv", TIMES, sound=True)
    with file_server(tmp_path) as address:
        for options in ({}, {"start": 0.6}):
            found = [frame.time for frame in frames(f"{address}/{path.name}", **options)]
            assert found == [frame.time for frame in frames(path, **options)]


def test_an_incomplete_file_is_reported(tmp_path: Path):
    path = write_clip(tmp_path / "x.mkv", [i / 5 for i in range(30)])
    path.write_bytes(path.read_bytes()[:-900])
    with VideoFile(path) as video:
        found = list(video)
        assert 0 < len(found) < 30
        assert "it is incomplete" in " ".join(video.remarks)
    with VideoFile(path, end=0.5) as video:
        assert len(list(video)) == 3
        assert "incomplete" not in " ".join(video.remarks)


def test_closing_while_reading(clip: Path):
    video = open_video(clip)
    found = []
    for frame in video:
        found.append(frame)
        video.close()
    assert len(found) == 1
    with pytest.raises(UsageError, match="is closed"):
        next(iter(video))


def test_a_name_with_a_colon(clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("12:30.mp4").write_bytes(clip.read_bytes())
    assert len(frames("12:30.mp4")) == 30


def test_colours_that_cannot_be_converted(tmp_path: Path):
    ictcp = 14
    path = write_clip(tmp_path / "x.mkv", TIMES[:2], colorspace=ictcp)
    with pytest.raises(ImageError, match=r"colours of .* cannot be converted"):
        frames(path)


def test_truncated_file(clip: Path, tmp_path: Path):
    short = tmp_path / "short.mp4"
    short.write_bytes(clip.read_bytes()[:1500])
    with pytest.raises(ImageError, match="cannot be opened as a video"):
        VideoFile(short)


def test_errors(tmp_path: Path, clip: Path):
    with pytest.raises(ImageError, match="No such file"):
        open_video(tmp_path / "none.mp4")
    text = tmp_path / "text.mp4"
    text.write_text("no video")
    with pytest.raises(ImageError, match="cannot be opened"):
        open_video(text)
    with pytest.raises(UsageError, match="every must be 1 or more"):
        open_video(clip, every=0)
    with pytest.raises(UsageError, match="end must be later than start"):
        open_video(clip, start=2, end=1)
    with pytest.raises(ImageError, match=r"no frame at or after 100 s"):
        frames(clip, start=100)
    with pytest.raises(ImageError, match="more than 1000"):
        open_video(clip, max_pixels=1000)


def test_sound_is_no_video(tmp_path: Path, clip: Path):
    import av

    path = tmp_path / "sound.mkv"
    with av.open(str(clip)) as source, av.open(str(path), "w") as target:
        track = target.add_stream_from_template(source.streams.audio[0])
        for packet in source.demux(source.streams.audio[0]):
            if packet.dts is not None:
                packet.stream = track
                target.mux(packet)
    with pytest.raises(ImageError, match="contains no video"):
        VideoFile(path)


def test_protocols_of_ffmpeg_are_not_file_names(clip: Path):
    with pytest.raises(ImageError, match="cannot be opened"):
        VideoFile(f"concat:{clip}|{clip}")


def test_stream_of_a_segmenter(exported, tmp_path: Path):
    path = write_clip(tmp_path / "x.mp4", TIMES[:4])
    with Segmenter(exported("semantic"), color_order="bgr") as segmenter:
        found = list(segmenter.stream(str(path)))
        with open_video(path, every=2) as video:
            some = list(segmenter.stream(video))
        with pytest.raises(UsageError, match="are RGB"):
            segmenter.stream(path, color_order="bgr")
        with pytest.raises(UsageError, match="not an image"):
            segmenter.stream(True)
    assert [result.time for result in found] == pytest.approx(TIMES[:4], abs=1e-3)
    assert [result.time for result in some] == [found[0].time, found[2].time]
    assert [number_of(result.image) for result in found] == [0, 1, 2, 3]
    assert found[0].image[0, 0, 0] > 180  # the corner is red, whatever arrays are


def test_without_pyav(clip: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(MissingDependencyError) as caught:
        open_video(clip)
    assert caught.value.fix == "pip install 'eomt-deploy[video]'"


@pytest.mark.parametrize(
    ("source", "wanted"),
    [
        ("a.mp4", True), ("A.MKV", True), ("rtsp://host/x", True), (0, True), ("0", True),
        ("http://host/live.mjpg?x=1", True), ("https://host/a.mp4?token=1", True),
        ("http://host/a.jpg", False), ("a.jpg", False), ("folder", False), (True, False),
        (b"0", False), (None, False), ("²", False),
    ],
)  # fmt: skip
def test_is_video(source: object, wanted: bool):
    assert is_video(source) is wanted


def test_a_file_named_like_a_camera(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("0").write_bytes(b"")
    assert not is_video("0")
