from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eomt_deploy.backends.tensorrt import library
from eomt_deploy.backends.tensorrt.compatibility import (
    Machine,
    check_machine,
    check_trust,
    this_machine,
)
from eomt_deploy.devices import cuda_device_count
from eomt_deploy.errors import DeviceError, MissingDependencyError, ModelFileError, UsageError
from eomt_deploy.sidecar import Sidecar
from eomt_deploy.spec import Backbone, ClassInfo, ModelSpec, Thresholds

SPEC = ModelSpec(
    name="tiny",
    task="panoptic",
    image_size=(64, 64),
    patch_size=16,
    num_queries=12,
    num_blocks=1,
    num_upscale=2,
    classes=(ClassInfo(0, "road", False, (0, 0, 0)),),
    resize="letterbox",
    thresholds=Thresholds(),
    backbone=Backbone("dinov2", 8, 2, 1, "gelu", 4, 100),
)
SIDECAR = Sidecar(
    spec=SPEC,
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
    plan_bytes=1000,
    plan_sha256="0" * 64,
    onnx="street.fp16.onnx",
    onnx_sha256="1" * 64,
    settings={},
)
MACHINE = Machine("11.4.0.106", "NVIDIA L4", "8.9", "580.65.06")
RTX = replace(
    SIDECAR,
    target="tensorrt-rtx",
    library_version="1.7.1.116",
    compute_capabilities=("8.6", "8.9"),
    gpu=None,
    driver=None,
)
RTX_MACHINE = replace(MACHINE, library_version="1.7.1.116")


def test_the_machine_that_built_it_runs_it_without_remarks():
    assert check_machine(SIDECAR, MACHINE) == ()
    assert check_machine(RTX, RTX_MACHINE) == ()


# Each case: sidecar, machine, error, and texts that the error must contain: expected and found
# value, and the fix.
REFUSED = [
    (
        SIDECAR,
        Machine("11.4.0.106", None, None, None),
        DeviceError,
        ["no NVIDIA GPU", "NVIDIA L4 (compute capability 8.9)", "street.fp16.onnx on the CPU"],
    ),
    (
        SIDECAR,
        replace(MACHINE, library_version=None, problem="libnvinfer.so.11: cannot open"),
        MissingDependencyError,
        ["TensorRT 11.4.0.106", "libnvinfer.so.11", "pip install 'eomt-deploy[tensorrt]'"],
    ),
    (
        RTX,
        replace(RTX_MACHINE, library_version=None),
        MissingDependencyError,
        ["TensorRT-RTX 1.7.1.116", "pip install 'eomt-deploy[tensorrt-rtx]'"],
    ),
    (
        SIDECAR,
        replace(MACHINE, library_version="10.13.3.9"),
        DeviceError,
        [
            "TensorRT 11.4.0.106, but TensorRT 10.13.3.9 is installed",
            "eomt-deploy build street.fp16.onnx -o street.engine",
            "pip install 'tensorrt==11.4.0.106'",
        ],
    ),
    (
        SIDECAR,
        replace(MACHINE, library_version="11.4.0.107"),
        DeviceError,
        ["11.4.0.106", "11.4.0.107", "only with the version that built it."],
    ),
    (
        replace(SIDECAR, version_compatible=True),
        replace(MACHINE, library_version="11.3.0.10"),
        DeviceError,
        ["11.4.0.106", "11.3.0.10", "later ones"],
    ),
    (
        replace(RTX, version_compatible=True),  # TensorRT-RTX does not guarantee this
        replace(RTX_MACHINE, library_version="1.8.0.1"),
        DeviceError,
        [
            "TensorRT-RTX 1.7.1.116",
            "1.8.0.1",
            "--target tensorrt-rtx",
            "tensorrt-rtx-cu13==1.7.1.116",
        ],
    ),
    (
        SIDECAR,
        replace(MACHINE, gpu="NVIDIA H200", compute_capability="9.0"),
        DeviceError,
        ["NVIDIA L4 (compute capability 8.9)", "NVIDIA H200 (compute capability 9.0)", "build"],
    ),
    (
        replace(SIDECAR, hardware_compatibility="ampere_plus", compute_capabilities=("8.0+",)),
        replace(MACHINE, gpu="NVIDIA T4", compute_capability="7.5"),
        DeviceError,
        ["8.0 and later", "NVIDIA T4 (compute capability 7.5)"],
    ),
    (
        RTX,
        replace(RTX_MACHINE, gpu="NVIDIA RTX 5090", compute_capability="12.0"),
        DeviceError,
        ["compute capability 8.6, 8.9", "12.0", "eomt-deploy build street.fp16.onnx --target"],
    ),
    (
        replace(RTX, compute_capabilities=("8.0+",)),
        replace(RTX_MACHINE, gpu="NVIDIA H200", compute_capability="9.0"),
        DeviceError,
        ["NVIDIA H200 (compute capability 9.0)", "RTX GPUs only", "build street.fp16.onnx -o"],
    ),
    (
        replace(RTX, compute_capabilities=("8.9+",)),
        replace(RTX_MACHINE, gpu="NVIDIA B200", compute_capability="10.0"),
        DeviceError,
        ["NVIDIA B200 (compute capability 10.0)", "data-centre GPUs need TensorRT"],
    ),
]


@pytest.mark.parametrize(("sidecar", "machine", "kind", "words"), REFUSED)
def test_refusal_names_both_values_and_the_command(sidecar, machine, kind, words):
    with pytest.raises(kind) as error:
        check_machine(sidecar, machine, engine=Path("models/street.engine"))
    for word in words:
        assert word in str(error.value)
    assert error.value.exit_code == 3
    assert error.value.fix


@pytest.mark.parametrize("environment", [{}, {"EOMT_DEPLOY_TRUST_ENGINES": "0"}])
def test_engines_that_bring_code_need_the_users_word(environment):
    check_trust(SIDECAR, environment)
    portable = replace(SIDECAR, version_compatible=True)
    with pytest.raises(UsageError, match="contains code for the CPU") as error:
        check_trust(portable, environment)
    assert "EOMT_DEPLOY_TRUST_ENGINES=1" in error.value.fix
    check_trust(portable, {"EOMT_DEPLOY_TRUST_ENGINES": "1"})


def test_unknown_target():
    with pytest.raises(ModelFileError, match="'tensorrt-edge'"):
        check_machine(replace(SIDECAR, target="tensorrt-edge"), MACHINE)


def test_another_gpu_of_the_same_kind_runs_it_with_a_remark():
    other = replace(MACHINE, gpu="NVIDIA GeForce RTX 4090")
    (remark,) = check_machine(SIDECAR, other)
    assert "NVIDIA L4" in remark
    assert "NVIDIA GeForce RTX 4090" in remark
    portable = replace(SIDECAR, hardware_compatibility="same_compute_capability")
    assert check_machine(portable, other) == ()


versions = st.tuples(*[st.integers(0, 20)] * 4).map(lambda v: ".".join(map(str, v)))


def runs(sidecar: Sidecar, machine: Machine) -> bool:
    try:
        check_machine(sidecar, machine)
    except DeviceError:
        return False
    return True


@given(versions, versions, st.booleans(), st.sampled_from([SIDECAR, RTX]))
def test_versions(built, found, compatible, sidecar):
    sidecar = replace(sidecar, library_version=built, version_compatible=compatible)
    later = [int(x) for x in found.split(".")] >= [int(x) for x in built.split(".")]
    expected = found == built or (compatible and later and sidecar.target == "tensorrt")
    assert runs(sidecar, replace(MACHINE, library_version=found)) == expected


@given(versions, st.integers(1, 4))
def test_shorter_version_numbers_say_nothing_of_the_rest(version, parts):
    short = ".".join(version.split(".")[:parts])
    assert runs(replace(SIDECAR, library_version=short), replace(MACHINE, library_version=version))
    assert runs(replace(SIDECAR, library_version=version), replace(MACHINE, library_version=short))


capabilities = st.tuples(st.integers(7, 12), st.integers(0, 9))


@given(st.lists(st.tuples(capabilities, st.booleans()), min_size=1, max_size=4), capabilities)
def test_compute_capabilities(listed, found):
    entries = tuple(f"{a}.{b}{'+' * plus}" for (a, b), plus in listed)
    machine = replace(MACHINE, compute_capability=f"{found[0]}.{found[1]}")
    expected = any(found >= entry if plus else found == entry for entry, plus in listed)
    assert runs(replace(SIDECAR, compute_capabilities=entries), machine) == expected
    machine = replace(machine, library_version=RTX.library_version)
    expected = expected and found[0] not in (9, 10)
    assert runs(replace(RTX, compute_capabilities=entries), machine) == expected


def test_this_machine_is_described_without_starting_anything():
    tensorrt_rtx = pytest.importorskip("tensorrt_rtx")

    machine = this_machine("tensorrt-rtx")
    assert machine.library_version == tensorrt_rtx.__version__
    assert (machine.gpu is not None) == (cuda_device_count() > 0)
    assert (machine.compute_capability is None) == (machine.gpu is None)


def test_operators_and_known_faults_of_older_versions():
    plain, fused = {"MatMul": 4}, {"MatMul": 4, "Attention": 2}
    for version in ("10.14.1.48", "10.12.0.36", "11.4.0.106"):
        assert library.check_operators("tensorrt", version, plain) == []
    [warning] = library.check_operators("tensorrt", "10.3.0.30", plain)
    assert "TensorRT 10.3.0.30 is older than 10.12" in warning
    assert "4723" in warning
    assert library.check_operators("tensorrt", "10.14.1.48", fused) == []
    with pytest.raises(MissingDependencyError, match=r"needs TensorRT 10\.14; 10\.13\.3\.9") as e:
        library.check_operators("tensorrt", "10.13.3.9", fused)
    assert "--attention fused" in e.value.fix
    assert library.check_operators("tensorrt-rtx", "1.2.0.54", fused) == []
