"""`doctor` recommends only what can work on the machine."""

from __future__ import annotations

import pytest

from eomt_deploy import devices
from eomt_deploy.backends.backend import NO_GPU, Backend
from eomt_deploy.backends.registry import BACKENDS
from eomt_deploy.cli.doctor import TORCH_FOR_CPU, Machine, find_abilities

CPU, GPU, MAC = Machine("Linux"), Machine("Linux", ("NVIDIA L4",)), Machine("Darwin")
CUDA_ONLY = ("[cuda]", "[tensorrt]")


@pytest.fixture
def nothing_installed(monkeypatch):
    """As after `pip install eomt-deploy` without extras."""
    monkeypatch.setattr(Backend, "installed", False)
    monkeypatch.setattr(devices, "package_version", lambda name: None)


@pytest.mark.usefixtures("nothing_installed")
def test_without_a_gpu_nothing_for_cuda_is_recommended():
    found = {ability.name: ability for ability in find_abilities(CPU)}
    for ability in found.values():
        assert not any(extra in ability.fix for extra in CUDA_ONLY), ability
        if ability.name.endswith("on cuda"):
            assert (ability.detail, ability.fix) == (NO_GPU, "")
    assert found["run .onnx with onnxruntime on cpu"].fix == "pip install 'eomt-deploy[cpu]'"
    assert found["run .pt2 with aotinductor on cpu"].fix.startswith(f"{TORCH_FOR_CPU} && ")
    assert (
        found["export checkpoints"].fix == f"{TORCH_FOR_CPU} && pip install 'eomt-deploy[export]'"
    )


@pytest.mark.usefixtures("nothing_installed")
def test_with_a_gpu_the_packages_for_cuda_are_recommended():
    found = {ability.name: ability for ability in find_abilities(GPU)}
    assert found["run .onnx with onnxruntime on cuda"].fix == "pip install 'eomt-deploy[cuda]'"
    assert found["run .engine with tensorrt on cuda"].fix == "pip install 'eomt-deploy[tensorrt]'"
    assert found["export checkpoints"].fix == "pip install 'eomt-deploy[export]'"


@pytest.mark.usefixtures("nothing_installed")
def test_macos_gets_no_packages_of_nvidia():
    for ability in find_abilities(MAC):
        assert "tensorrt" not in ability.fix
        assert "[cuda]" not in ability.fix
    assert MAC.install("tensorrt-rtx") == ""
    assert MAC.install("export") == "pip install 'eomt-deploy[export]'"


def test_an_installed_pytorch_is_kept():
    assert devices.package_version("torch")
    assert CPU.install("export") == "pip install 'eomt-deploy[export]'"


def test_pytorch_for_the_cpu_cannot_use_a_gpu(monkeypatch):
    monkeypatch.setattr(
        "eomt_deploy.backends.aotinductor.problem.package_version", lambda _: "2.13.0+cpu"
    )
    found = {ability.name: ability for ability in find_abilities(GPU)}
    assert not found["run .pt2 with aotinductor on cuda"].works
    assert "built for the CPU only" in found["run .pt2 with aotinductor on cuda"].detail
    assert BACKENDS["aotinductor"].problem
