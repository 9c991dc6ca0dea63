from __future__ import annotations

import os
import time

import pytest

from eomt_deploy.benchmarking.machine.nvml import Nvml
from eomt_deploy.benchmarking.machine.state import (
    CpuTimes,
    GpuSample,
    cpu_times,
    others_share,
    summarize,
)
from eomt_deploy.benchmarking.machine.watch import Watch, gpu_load
from eomt_deploy.benchmarking.measure.verdict import Evidence, Verdict, judge
from eomt_deploy.devices import cuda_device_count

IDLE, CAP, HEAT, BOOST = 0x1, 0x4, 0x40, 0x10


def samples(*reasons: int | None) -> list[GpuSample]:
    return [GpuSample(1500 + i, 2600, 300.0 + i, 60 + i, r) for i, r in enumerate(reasons)]


def test_a_quiet_run_is_valid():
    gpu = summarize(samples(IDLE, BOOST, 0, 0))
    evidence = Evidence(0.02, others=0.01, gpu=gpu, host_share=0.3, copy_share=0.1)
    assert judge(evidence) == Verdict()
    assert str(judge(evidence)) == "VALID"


@pytest.mark.parametrize(
    ("evidence", "kind", "valid"),
    [
        (Evidence(0.01, rounds=5), "few rounds", False),
        (Evidence(0.01, clock="a time of 0 ms"), "clock", False),
        (Evidence(float("inf"), clock="a time of 0 ms"), "clock", False),
        (Evidence(float("nan")), "unstable", False),
        (Evidence(0.2), "unstable", False),
        (Evidence(0.01, steady=False), "unstable", False),
        (Evidence(0.01, others=0.4), "other load", False),
        (Evidence(0.01, gpu=summarize(samples(CAP, CAP, 0))), "throttled", False),
        (Evidence(0.01, gpu=summarize(samples(HEAT, 0, 0))), "throttled", False),
        (Evidence(0.01, copy_share=0.7), "copy-bound", True),
        (Evidence(0.01, host_share=0.95), "launch-bound", True),
    ],
)
def test_every_doubt_is_said(evidence, kind, valid):
    verdict = judge(evidence)
    assert [reason.kind for reason in verdict.reasons] == [kind]
    assert verdict.valid == valid
    assert str(verdict) == f"{'VALID' if valid else 'INVALID'}: {kind}"
    assert Verdict.from_dict(verdict.to_dict()) == verdict


def test_rare_samples_and_requested_limits_are_not_throttling():
    rare = Evidence(0.01, gpu=summarize(samples(CAP, *[0] * 20)))
    assert judge(rare).valid
    assert judge(Evidence(0.15), unstable_cv=0.2).valid


def test_gpu_samples_are_summarized():
    state = summarize([*samples(0, CAP), GpuSample(None, None, None, None, None)])
    assert (state.samples, state.sm_mhz, state.temperature_c) == (3, (1500, 1501), (60, 61))
    assert dict(state.throttled) == {"power cap": 0.5}
    assert summarize(samples(None)).throttled == ()
    assert state.to_dict()["power_w"] == (300.0, 301.0)


def test_share_of_other_programs():
    start, end = CpuTimes(0, 100, 50), CpuTimes(10, 116, 62)
    assert others_share(start, end, 2) == pytest.approx((16 - 12) / 10 / 2)
    assert others_share(start, CpuTimes(10, 110, 62), 2) == 0  # rounding of the counters
    assert others_share(start, start, 2) == 0


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="only Linux tells")
def test_counters_of_this_machine_go_forward():
    first = cpu_times()
    end = time.perf_counter() + 0.1
    while time.perf_counter() < end:
        pass
    second = cpu_times()
    assert first is not None
    assert second is not None
    assert second.own > first.own
    assert second.busy >= first.busy
    with Watch("cpu") as watch:
        watch()
        assert watch.gpu is None
        assert 0 <= watch.others <= 1


@pytest.mark.skipif(cuda_device_count() > 0, reason="there is a GPU")
def test_without_a_gpu_nvml_knows_nothing():
    with Nvml() as nvml:
        assert not nvml.available
        assert nvml.sample() is nvml.utilization() is None
        assert nvml.facts() == {}
    assert gpu_load() is None
    with Watch("cuda", 0.3) as watch:
        watch()
        assert (watch.gpu, watch.others, watch.limits()) == (None, 0.3, {})


@pytest.mark.gpu
@pytest.mark.skipif(cuda_device_count() == 0, reason="no NVIDIA GPU")
def test_nvml_describes_this_gpu():
    with Nvml() as nvml:
        sample = nvml.sample()
        assert sample is not None
        assert 0 < sample.sm_mhz <= nvml.facts()["max_sm_mhz"]
        assert 0 < sample.temperature_c < 110
        assert 0 <= nvml.utilization() <= 1
