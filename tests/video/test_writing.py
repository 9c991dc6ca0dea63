"""Writing overlays and labels as videos."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from clips import number_of, picture, write_clip

from eomt_deploy.errors import OutputError, UsageError
from eomt_deploy.outputs import is_ours
from eomt_deploy.video import VideoFile
from eomt_deploy.video.sound import ENCODERS, OPUS
from eomt_deploy.video.writing import VideoWriter

TIMES = [i / 25 for i in range(30)]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clip(tmp_path_factory.mktemp("clip") / "clip.mp4", TIMES, sound=True)


def copy(clip: Path, path: Path, **range_: float) -> tuple[str, ...]:
    with VideoFile(clip, **range_) as video:
        with VideoWriter(path, video.size, video.rate, sound=video) as writer:
            for frame in video:
                writer.write(frame.pixels, frame.time)
        return writer.remarks


def sound_of(path: Path) -> np.ndarray:
    with av.open(str(path)) as container:
        return np.concatenate([f.to_ndarray()[0] for f in container.decode(audio=0)])


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".mov"])
def test_frames_times_and_sound_are_kept(clip: Path, tmp_path: Path, suffix: str):
    path = tmp_path / f"copy{suffix}"
    assert copy(clip, path) == ()
    with VideoFile(path) as video:
        found = list(video)
        assert float(video.rate) == pytest.approx(25, rel=0.05)
    assert [number_of(frame.pixels) for frame in found] == list(range(30))
    assert [frame.time for frame in found] == pytest.approx(TIMES, abs=2e-3)
    wanted, have = sound_of(clip), sound_of(path)
    if suffix == ".mkv":  # the encoder's delay is a part of the sound here, and the video waits
        have = have[1024:]
    np.testing.assert_allclose(
        have[: len(wanted) - 4096], wanted[: len(have)][: len(wanted) - 4096]
    )
    assert is_ours(path)


def test_sound_of_a_part(clip: Path, tmp_path: Path):
    path = tmp_path / "part.mp4"
    copy(clip, path, start=0.4, end=0.8)
    with VideoFile(path) as video:
        found = list(video)
    assert [number_of(frame.pixels) for frame in found] == list(range(10, 20))
    assert found[0].time == 0
    assert len(sound_of(path)) / 48_000 == pytest.approx(0.4, abs=0.05)


def test_irregular_times_are_kept(tmp_path: Path):
    times = [0, 0.1, 0.15, 0.7, 0.71, 2.0]
    source = write_clip(tmp_path / "vfr.mp4", times)
    copy(source, tmp_path / "copy.mp4")
    with VideoFile(tmp_path / "copy.mp4") as video:
        assert [frame.time for frame in video] == pytest.approx(times, abs=1e-3)


def loudest(sound: np.ndarray, rate: int) -> float:
    """The strongest frequency in Hz."""
    spectrum = np.abs(np.fft.rfft(sound * np.hanning(len(sound))))
    return float(np.argmax(spectrum)) * rate / len(sound)


@pytest.mark.parametrize(
    ("source", "target", "codec"),
    [(".mov", ".mp4", "aac"), (".mov", ".m4v", "aac"), (".mp4", ".webm", "opus")],
)
def test_sound_that_does_not_fit_is_converted(tmp_path: Path, source: str, target: str, codec: str):
    tone = "pcm_s16le" if source == ".mov" else "aac"
    clip = write_clip(tmp_path / f"clip{source}", TIMES, sound=tone)
    path = tmp_path / f"copy{target}"
    (remark,) = copy(clip, path)
    shown = {"aac": "AAC", "opus": "Opus"}[codec]
    assert remark == f"the sound of {path.name} is converted from {tone} to {shown}"
    with av.open(str(path)) as container:
        assert container.streams.audio[0].codec_context.name.endswith(codec)
        assert container.streams.audio[0].layout.name == "stereo"
        frames = list(container.decode(audio=0))
        assert float(frames[0].time) == pytest.approx(0, abs=0.03)
    wanted, have = sound_of(clip).astype(float), sound_of(path).astype(float)
    if tone == "pcm_s16le":
        wanted = wanted[::2] / 32_767  # left and right are interleaved
    assert len(have) == pytest.approx(len(wanted), abs=4096)
    middle = slice(8192, 8192 + 16_384)
    assert loudest(have[middle], 48_000) == pytest.approx(loudest(wanted[middle], 48_000), abs=6)
    assert np.std(have[middle]) == pytest.approx(np.std(wanted[middle]), rel=0.1)
    with VideoFile(path) as video:
        assert len(list(video)) == 30


def test_converted_sound_of_a_part_starts_with_its_first_frame(tmp_path: Path):
    clip = write_clip(tmp_path / "clip.mov", TIMES, sound="pcm_s16le")
    path = tmp_path / "part.mp4"
    copy(clip, path, start=0.4, end=0.8)
    assert len(sound_of(path)) / 48_000 == pytest.approx(0.4, abs=0.05)


def test_sound_that_can_be_neither_copied_nor_converted(
    clip: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setitem(ENCODERS, "webm", OPUS._replace(name="an encoder that FFmpeg lacks"))
    (remark,) = copy(clip, tmp_path / "copy.webm")
    assert remark == "copy.webm has no sound: .webm cannot contain aac"
    with VideoFile(tmp_path / "copy.webm") as video:
        assert len(list(video)) == 30


def test_odd_sizes(tmp_path: Path):
    with VideoWriter(tmp_path / "odd.mp4", (41, 63), Fraction(25)) as writer:
        for number in range(3):
            writer.write(picture(number, (41, 63)), number / 25)
    with VideoFile(tmp_path / "odd.mp4") as video:
        assert video.size == (42, 64)
        assert [number_of(frame.pixels) for frame in video] == [0, 1, 2]


@pytest.mark.parametrize(
    ("shape", "dtype"), [((37, 51), np.uint8), ((37, 51), np.uint16), ((37, 51, 3), np.uint8)]
)
def test_labels_are_exact(tmp_path: Path, shape: tuple[int, ...], dtype: type):
    rng = np.random.default_rng(0)
    labels = rng.integers(0, np.iinfo(dtype).max + 1, (4, *shape), dtype)
    path = tmp_path / "x.labels.mkv"
    with VideoWriter(path, (37, 51), None, kind="labels") as writer:
        for number, one in enumerate(labels):
            writer.write(one, number / 10)
    with av.open(str(path)) as container:
        rgb = {"format": "rgb24"} if len(shape) == 3 else {}
        found = [frame.to_ndarray(**rgb) for frame in container.decode(video=0)]
    np.testing.assert_array_equal(np.stack(found), labels)
    assert is_ours(path)


@pytest.mark.parametrize("kind", ["overlay", "labels"])
def test_a_change_of_the_size(tmp_path: Path, kind: str):
    path = tmp_path / "x.labels.mkv"
    with VideoWriter(path, (40, 60), Fraction(25), kind=kind) as writer:
        for number, size in enumerate([(40, 60), (80, 120), (20, 30)]):
            pixels = picture(number, size) if kind == "overlay" else np.zeros(size, np.uint8)
            if kind == "labels":
                pixels[:, size[1] // 2 :] = 200
            writer.write(pixels, number / 25)
    assert writer.remarks == (
        "frames of another size, from 0.04 s on, are scaled to the first size",
    )
    with av.open(str(path)) as container:
        found = [frame.to_ndarray() for frame in container.decode(video=0)]
    assert len(found) == 3
    if kind == "labels":
        assert all(set(np.unique(frame)) == {0, 200} for frame in found)


def test_closing_twice(tmp_path: Path):
    writer = VideoWriter(tmp_path / "x.mp4", (48, 64), None)
    writer.write(picture(0), 0)
    writer.close()
    writer.close()
    assert is_ours(tmp_path / "x.mp4")


def test_without_frames_nothing_is_written(tmp_path: Path):
    with VideoWriter(tmp_path / "x.mp4", (4, 4), None):
        pass
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_is_replaced_only_at_the_end(tmp_path: Path):
    path = tmp_path / "x.mp4"
    path.write_bytes(b"old")
    with VideoWriter(path, (48, 64), None) as writer:
        writer.write(picture(0), 0)
        assert path.read_bytes() == b"old"
    assert is_ours(path)
    assert [p.name for p in tmp_path.iterdir()] == ["x.mp4"]


def test_errors(tmp_path: Path):
    with pytest.raises(UsageError, match=r"cannot be written as \.gif"):
        VideoWriter(tmp_path / "x.gif", (4, 4), None)
    with pytest.raises(UsageError, match="video of the labels"):
        VideoWriter(tmp_path / "x.mp4", (4, 4), None, kind="labels")
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError):
        VideoWriter(tmp_path / "file" / "x.mp4", (4, 4), None)


def test_a_foreign_video_is_not_ours(clip: Path):
    assert not is_ours(clip)


def test_the_shape_of_pixels_is_kept(tmp_path: Path):
    source = write_clip(tmp_path / "wide.mp4", TIMES[:3], aspect=Fraction(4, 3))
    copy(source, tmp_path / "copy.mp4")
    with av.open(str(tmp_path / "copy.mp4")) as container:
        assert container.streams.video[0].sample_aspect_ratio == Fraction(4, 3)
