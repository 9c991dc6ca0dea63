"""Streams and cameras: a local Motion JPEG server, and a camera that does not exist."""

from __future__ import annotations

import itertools
import time

import av
import numpy as np
import pytest
from clips import file_server, mjpeg_server, number_of, picture, write_clip

from eomt_deploy import open_video
from eomt_deploy.errors import DeviceError, ImageError, UsageError
from eomt_deploy.video.live import LiveVideo


def test_all_frames_in_order():
    with mjpeg_server() as address, LiveVideo(address, latest=False) as video:
        found = list(itertools.islice(video, 12))
        assert (video.live, video.count) == (True, None)
        assert "secret" not in video.name
    assert [number_of(frame.pixels) for frame in found] == list(range(12))
    assert [frame.number for frame in found] == list(range(12))
    times = [frame.time for frame in found]
    assert times == sorted(times)
    assert video.dropped == 0


def test_latest_frame_of_a_fast_stream():
    with mjpeg_server() as address, open_video(address) as video:
        frames = iter(video)
        first = next(frames)
        before = video.dropped  # frames that arrived before the first one was asked for
        while video.dropped < before + 10:  # meanwhile the network is busy
            time.sleep(0.01)
        second = next(frames)
        assert second.number - first.number > 10
        passed = number_of(second.pixels) - number_of(first.pixels)
        assert passed % 30 == (second.number - first.number) % 30
        assert "had to be dropped to stay in real time" in video.remarks[0]


def test_a_lost_stream_is_opened_again():
    with mjpeg_server(lose_after=4) as address, LiveVideo(address, latest=False) as video:
        found = [number_of(frame.pixels) for frame in itertools.islice(video, 10)]
        assert video.reconnected >= 2
        assert "opened again" in video.remarks[0]
    assert len(found) == 10
    assert found[:3] == [0, 1, 2]
    assert found.count(0) >= 2


def test_a_stream_that_stays_lost_is_an_error():
    with mjpeg_server(lose_after=4, connections=1) as address:
        video = LiveVideo(address, latest=False, patience=0.3)
        frames = iter(video)
        with video:
            assert [number_of(next(frames).pixels) for _ in range(3)] == [0, 1, 2]
            with pytest.raises(ImageError) as caught:
                list(frames)
    assert "secret" not in str(caught.value)


def test_a_recorded_playlist_is_read_like_a_file(tmp_path):
    clip = write_clip(tmp_path / "x.mp4", [i / 25 for i in range(30)])
    with (
        av.open(str(clip)) as source,
        av.open(str(tmp_path / "x.m3u8"), "w", format="hls") as target,
    ):
        stream = target.add_stream_from_template(source.streams.video[0])
        for packet in source.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                target.mux(packet)
    with file_server(tmp_path) as address, open_video(f"{address}/x.m3u8") as video:
        assert [number_of(frame.pixels) for frame in video] == list(range(30))
        assert not video.live


def test_the_end_also_ends_a_lost_stream():
    began = time.monotonic()
    with (
        mjpeg_server(lose_after=3, connections=1) as address,
        LiveVideo(address, end=1, latest=False, patience=30) as video,
    ):
        assert len(list(video)) >= 2
    assert time.monotonic() - began < 15


def test_another_failure_of_the_reader_is_an_error(monkeypatch: pytest.MonkeyPatch):
    def fail(*_: object) -> None:
        raise RuntimeError("no memory")

    monkeypatch.setattr("eomt_deploy.video.live.to_pixels", fail)
    with (
        mjpeg_server() as address,
        LiveVideo(address, patience=0) as video,
        pytest.raises(ImageError, match="no memory"),
    ):
        list(video)


def test_an_address_can_say_that_it_is_a_stream():
    with mjpeg_server(path="/live") as address, open_video(f"{address}#.mjpg") as video:
        assert video.live
        assert number_of(next(iter(video)).pixels) >= 0


def test_every_and_end():
    with mjpeg_server() as address, open_video(address, every=3, end=0.5) as video:
        found = list(video)
    assert found
    assert all(frame.number % 3 == 0 and frame.time < 0.5 for frame in found)


def test_closing_ends_the_thread():
    with mjpeg_server(interval=0.05) as address:
        video = open_video(address)
        next(iter(video))
        video.close()
        assert video._thread is not None
        assert not video._thread.is_alive()
        assert list(video) == []


def test_errors():
    with pytest.raises(ImageError, match="Connection refused"):
        open_video("http://127.0.0.1:9/x.mjpg")
    with pytest.raises(ImageError) as caught:
        open_video("rtsp://user:password@127.0.0.1:9/x")
    assert "password" not in str(caught.value)
    with pytest.raises(UsageError, match="no start time"):
        open_video("http://127.0.0.1:9/x.mjpg", start=2)
    with pytest.raises(DeviceError, match="Camera 91 cannot be opened"):
        open_video(91)


def test_a_camera(monkeypatch: pytest.MonkeyPatch):
    """There is no camera here; the pixels come from a class with its interface."""

    class Capture:
        def __init__(self, number: int) -> None:
            self.left = 3

        def isOpened(self) -> bool:  # noqa: N802  OpenCV's name
            return True

        def read(self) -> tuple[bool, np.ndarray | None]:
            self.left -= 1
            return (True, picture(self.left)[:, :, ::-1]) if self.left >= 0 else (False, None)

        def release(self) -> None:
            self.left = 0

    monkeypatch.setattr("cv2.VideoCapture", Capture)
    video = LiveVideo(0, latest=False)
    frames = iter(video)
    found = [next(frames) for _ in range(3)]
    assert [number_of(frame.pixels) for frame in found] == [2, 1, 0]
    assert found[0].pixels[0, 0, 0] > 200  # red, not blue
    with pytest.raises(DeviceError, match="Camera 0 stopped"):
        next(frames)
    video.close()
