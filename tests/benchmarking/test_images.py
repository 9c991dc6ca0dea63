"""Which images a benchmark measures, and how several images are measured in turn."""

from __future__ import annotations

import io
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from clips import file_server, number_of, write_clip
from PIL import Image

from eomt_deploy import Segmenter
from eomt_deploy.benchmarking import bench_stages, stages
from eomt_deploy.benchmarking.images import bench_sources, described, input_files, spread
from eomt_deploy.benchmarking.measure.clock import Job, Rounds
from eomt_deploy.benchmarking.measure.statistics import variation
from eomt_deploy.benchmarking.stages import Turns, stage_settings
from eomt_deploy.errors import UsageError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Five images of different sizes, and a text file."""
    place = tmp_path / "images"
    place.mkdir()
    for index in range(5):
        pixels = np.full((30 + 10 * index, 40, 3), 50 * index, np.uint8)
        Image.fromarray(pixels).save(place / f"{index}.png")
    (place / "notes.txt").write_text("no image")
    return place


def names(*sources: object, limit: int = 16) -> list[str]:
    return [image.name for image in bench_sources([*map(str, sources)]).read(limit)]


def test_the_sources_of_predict(folder: Path, monkeypatch: pytest.MonkeyPatch):
    every = [f"{index}.png" for index in range(5)]
    assert names(folder) == every
    assert names(folder / "[13].png", folder / "3.png") == ["1.png", "3.png"]
    (folder / "list.txt").write_text("4.png\n# a remark\n0.png\n")
    assert names(f"@{folder}/list.txt") == ["4.png", "0.png"]
    assert bench_sources([folder]).note == "left out 2 files: 2 .txt"
    content = (folder / "2.png").read_bytes()
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(content)))
    (image,) = bench_sources(["-"]).read()
    assert (image.name, image.source, image.size) == ("standard input", content, "50x40")
    with file_server(folder) as address:
        (image,) = bench_sources([f"{address}/1.png"]).read()
    assert image.source == (folder / "1.png").read_bytes()
    assert image.pixels.max() == 50


def test_one_frame_per_second_of_a_video(tmp_path: Path):
    clip = write_clip(tmp_path / "clip.mp4", [i / 10 for i in range(30)])
    sources = bench_sources([clip])
    frames = list(sources.read())
    assert [number_of(frame.pixels) for frame in frames] == [0, 10, 20]
    assert [frame.source for frame in frames] == [None] * 3
    assert frames[1].name == f"{clip} at 1.00 s"
    assert len(list(sources.read(2))) == 2
    assert described(frames, None).startswith("3 frames of a video in turn (48x64), from ")


def test_a_longer_list_is_sampled_evenly(folder: Path):
    assert names(folder, limit=2) == ["0.png", "2.png"]
    assert names(folder, limit=4) == ["0.png", "1.png", "2.png", "3.png"]
    assert spread([f"{i}" for i in range(100)], 4) == ["0", "25", "50", "75"]
    images = list(bench_sources([folder]).read(2))
    assert described(images, 5) == "2 of 5 images in turn (30x40 to 50x40), from 0.png to 2.png"
    assert described(images[:1], 1) == "0.png (30x40)"


@pytest.mark.parametrize(
    ("sources", "words"),
    [
        (("a.mp4", "b.png"), "measured alone"),
        (("rtsp://host/live",), "camera or a stream"),
        (("-", "b.png"), "Standard input holds one image"),
    ],
)
def test_what_cannot_be_measured_together(sources: tuple[str, ...], words: str):
    with pytest.raises(UsageError, match=words):
        bench_sources(sources)


def test_only_existing_files_are_inputs(folder: Path):
    found = input_files(["-", "https://host/a.png", folder, folder / "none.png", folder / "*.png"])
    assert found == [folder]


def test_the_first_measured_round_gets_the_first_image():
    seen: list[int] = []
    turns = Turns(3, warmup=2)
    job = turns.job([Job(lambda n=n: seen.append(n)) for n in range(3)])
    for done in range(1, 7):
        job.work()
        turns.finished(done)
    assert seen == [1, 2, 0, 1, 2, 0]


def test_the_variation_of_several_images_is_within_each_image():
    assert variation([1, 10, 1, 10, 1, 10], images=2) == 0
    assert variation([1, 10, 1, 10, 1, 10]) > 0.8
    assert variation([0.9, 9, 1.1, 11], images=2) == pytest.approx(0.1 * 2**0.5)
    assert variation([1, 10], images=2) == float("inf")  # one time of each does not show it


def test_all_stages_take_the_images_in_turn(exported, folder: Path):
    with Segmenter(exported("semantic")) as segmenter:
        lines: list[str] = []
        report = bench_stages(
            [("m", segmenter)], bench_sources([folder]), stage_settings(), Rounds(6, warmup=1),
            log=lines.append,
        )  # fmt: skip
    assert lines == ["measuring 3 of 5 images in turn (30x40 to 60x40), from 0.png to 3.png"]
    assert report.images == ("0.png", "1.png", "3.png")  # each in at least two of six rounds
    assert [row.stage for row in report.rows] == list(stage_settings().stages)
    assert {row.images for row in report.rows} == {3}
    assert json.loads(json.dumps(report.to_dict()))["images"] == ["0.png", "1.png", "3.png"]


def test_images_beyond_the_memory_limit_are_left_out(exported, folder: Path, monkeypatch):
    monkeypatch.setattr(stages, "MAX_HELD_BYTES", 1)
    with Segmenter(exported("panoptic")) as segmenter:
        report = bench_stages(
            [("m", segmenter)], bench_sources([folder]), stage_settings(), Rounds(6, warmup=0),
            stages=("preprocess",), scenario="offline", batches=(1,),
        )  # fmt: skip
    assert report.images == ("0.png",)
    assert report.image.startswith("1 of 5 images in turn")


def test_frames_of_a_video_have_no_decode_stage(cli, exported, tmp_path: Path):
    clip = write_clip(tmp_path / "clip.mp4", [i / 10 for i in range(15)])
    path = tmp_path / "b.json"
    model = exported("panoptic")
    code, out, err = cli(
        "bench", "--engine", model, "--image", clip, "--iterations", "4", "--warmup", "0",
        "--json", path,
    )  # fmt: skip
    assert code == 0, err
    assert "measuring 2 frames of a video in turn (48x64)" in err
    assert "2 frames of a video" in out
    stages_ = [row["stage"] for row in json.loads(path.read_text())["rows"]]
    assert stages_ == ["preprocess", "network", "postprocess", "end-to-end"]
    code, _, err = cli("bench", "--engine", model, "--image", clip, "--scope", "decode")
    assert code == 2
    assert "unknown stage 'decode'" in err


def test_images_of_the_command_line(cli, exported, folder: Path):
    code, _, err = cli(
        "bench", "--engine", exported("panoptic"), "--image", folder / "1.png", "--image",
        folder / "4.png", "--iterations", "4", "--warmup", "0", "--scope", "end-to-end",
        "--scenario", "server", "--rate", "50", "--serve-seconds", "0.1",
    )  # fmt: skip
    assert code == 0, err
    assert "measuring 2 of 2 images in turn (40x40 to 70x40), from 1.png to 4.png" in err
    code, _, err = cli("bench", "--engine", exported("panoptic"), "--image", folder / "none.png")
    assert code == 2
    assert "There is no image or folder at" in err


def test_an_output_never_replaces_an_image(cli, exported, folder: Path):
    target = folder / "0.png"
    code, _, err = cli(
        "bench", "--engine", exported("panoptic"), "--image", folder, "--plot-latency", target,
        "--overwrite",
    )  # fmt: skip
    assert code == 2
    assert "input of this command" in err
