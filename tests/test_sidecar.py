from __future__ import annotations

import json
import time
from dataclasses import replace

import hand_made
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import VALUES, changed, names_it, paths, without

from eomt_deploy.errors import ModelFileError
from eomt_deploy.fields import MAX_LENGTH, is_printable
from eomt_deploy.sidecar import Sidecar, check_plan, read_sidecar, sidecar_path, write_sidecar

SIDECAR = Sidecar(
    spec=replace(hand_made.SPEC, precision="fp16", provenance={"eomt_deploy": "0.1.0"}),
    target="tensorrt",
    library_version="11.4.0.106",
    precision="fp16",
    batch=(1, 1, 8),
    compute_capabilities=("8.9",),
    gpu="NVIDIA L4",
    driver="580.65.06",
    version_compatible=False,
    hardware_compatibility="none",
    stripped=False,
    plan_bytes=4,
    plan_sha256="88d4266fd4e6338d13b845fcf289579d209c897823b9217da3e161936f031589",
    onnx="m.onnx",
    onnx_sha256="0" * 64,
    settings={"tf32": "no"},
    certificate=hand_made.CERTIFICATE,
)


@given(
    batch=st.lists(st.integers(1, 64), min_size=3, max_size=3).map(lambda b: tuple(sorted(b))),
    capabilities=st.lists(st.sampled_from(["7.5", "8.9", "12.0", "8.0+"]), max_size=3),
    gpu=st.none() | st.text(min_size=1, max_size=255).filter(is_printable),
    name=st.sampled_from(["m.onnx", "ä\udcff.onnx", "a\nb", "...onnx"]),
    settings=st.dictionaries(
        st.text().filter(is_printable), st.text().filter(is_printable), max_size=5
    ),
)
def test_json_round_trip(batch, capabilities, gpu, name, settings):
    sidecar = replace(
        SIDECAR,
        batch=batch,
        compute_capabilities=tuple(capabilities),
        gpu=gpu,
        onnx=name,
        settings=settings,
    )
    assert Sidecar.from_json(sidecar.to_json()) == sidecar


def test_file_round_trip_and_the_plan_beside_it(tmp_path):
    engine = tmp_path / "m.engine"
    assert write_sidecar(engine, SIDECAR) == sidecar_path(engine) == tmp_path / "m.engine.json"
    assert read_sidecar(engine) == SIDECAR
    with pytest.raises(ModelFileError, match="No such file"):
        check_plan(engine, SIDECAR)
    engine.write_bytes(b"abcd")
    check_plan(engine, SIDECAR, full=True)
    engine.write_bytes(b"abce")
    check_plan(engine, SIDECAR)
    with pytest.raises(ModelFileError, match="SHA-256"):
        check_plan(engine, SIDECAR, full=True)
    engine.write_bytes(b"abc")
    with pytest.raises(ModelFileError, match="cut off"):
        check_plan(engine, SIDECAR)


@pytest.mark.parametrize(
    ("entries", "runs", "fails"),
    [
        (("8.9",), [(8, 9)], [(8, 6), (9, 0), (12, 0)]),
        (("8.9", "12.0"), [(8, 9), (12, 0)], [(9, 0), (12, 1)]),
        (("8.0+",), [(8, 0), (8, 9), (9, 0), (12, 1)], [(7, 5)]),
        ((), [], [(8, 9)]),
    ],
)
def test_gpus_that_it_runs_on(entries, runs, fails):
    sidecar = replace(SIDECAR, compute_capabilities=entries)
    assert all(map(sidecar.runs_on, runs))
    assert not any(map(sidecar.runs_on, fails))


def test_engine_without_description(tmp_path):
    with pytest.raises(ModelFileError, match=r"m\.engine\.json is missing"):
        read_sidecar(tmp_path / "m.engine")
    sidecar_path(tmp_path / "m.engine").write_bytes(b"\xff\xfe")
    with pytest.raises(ModelFileError, match="cannot be read"):
        read_sidecar(tmp_path / "m.engine")


def test_another_schema_is_refused():
    data = json.loads(SIDECAR.to_json()) | {"schema_version": 99}
    with pytest.raises(ModelFileError, match="schema 99"):
        Sidecar.from_json(json.dumps(data))


@pytest.mark.parametrize(
    "change",
    [
        {"batch": [1, 8]},
        {"batch": "118x"},
        {"batch": [0, 0, 0]},
        {"batch": [8, 1, 4]},
        {"spec": json.loads(replace(SIDECAR.spec, batch=2).to_json())},
        {"library_version": ""},
        {"compute_capabilities": ["eight"]},
        {"compute_capabilities": [8.9]},
        {"spec": None},
        {"plan_bytes": "4"},
        {"precision": None},
        {"stripped": "no"},
        {"surprise": 1},
    ],
)
def test_changed_descriptions_are_refused(change, tmp_path):
    data = json.loads(SIDECAR.to_json()) | change
    sidecar_path(tmp_path / "m.engine").write_text(json.dumps(data))
    with pytest.raises(ModelFileError, match=r"m\.engine\.json"):
        read_sidecar(tmp_path / "m.engine")


DATA = json.loads(SIDECAR.to_json())


@pytest.mark.parametrize("path", [p for p in paths(DATA) if p[0] != "spec" or len(p) < 3], ids=str)
def test_any_value_in_any_field_is_read_or_refused(path):
    """Within a second: one error that names the field, or a valid description."""
    for value in VALUES:
        began = time.thread_time()
        try:
            sidecar = Sidecar.from_json(changed(DATA, path, value))
        except ModelFileError as error:
            message = error.what
            assert names_it(message, path)
            assert len(message) < 1000
            assert is_printable(message)
        else:
            assert Sidecar.from_json(sidecar.to_json()) == sidecar
            sidecar.runs_on((8, 9))
        assert time.thread_time() - began < 1


@pytest.mark.parametrize("field", [name for name in DATA if name != "certificate"])
def test_missing_fields(field):
    with pytest.raises(ModelFileError, match=f"`{field}` is missing|must be 1, got"):
        Sidecar.from_json(without(DATA, (field,)))


def test_older_files_have_no_certificate():
    assert Sidecar.from_json(without(DATA, ("certificate",))).certificate is None


@pytest.mark.parametrize("name", ["", ".", "..", "a/b.onnx", "/etc/passwd", "../m.onnx", "a\0"])
def test_names_of_models_that_are_no_file_names(name):
    with pytest.raises(ModelFileError, match="`onnx` must be a file name"):
        Sidecar.from_json(json.dumps(DATA | {"onnx": name}))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "cannot be read"),
        ("[]", "must be an object"),
        ("null", "must be an object"),
        ("{}", "`spec` is missing"),
        ('{"schema_version": 1}', "`spec` is missing"),
        ('{"a": ', "cannot be read"),
        ("[" * 200_000, "nested too deeply"),
    ],
)
def test_unreadable_text_is_refused(text, words):
    with pytest.raises(ModelFileError, match=words):
        Sidecar.from_json(text)


def test_huge_descriptions_are_not_read(tmp_path):
    sidecar_path(tmp_path / "m.engine").write_bytes(b" " * MAX_LENGTH + b"{}")
    with pytest.raises(ModelFileError, match=r"m\.engine\.json: .*the maximum is"):
        read_sidecar(tmp_path / "m.engine")
