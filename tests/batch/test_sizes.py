from __future__ import annotations

import pytest

from eomt_deploy.batch.sizes import choose_sizes


@pytest.mark.parametrize(
    ("cores", "gpus", "given", "models", "threads", "decoders"),
    [
        (2, 0, {}, 1, 2, 1),
        (2, 0, {"concurrency": 2}, 2, 1, 1),
        (64, 0, {}, 8, 8, 2),
        (64, 0, {"threads": 16}, 4, 16, 4),
        (1, 0, {"threads": 4}, 1, 4, 1),
        (96, 8, {}, 8, 4, 10),
        (16, 1, {}, 1, 4, 14),
        (200, 1, {"threads": 2}, 1, 2, 16),
        (16, 2, {"concurrency": 1}, 1, 4, 6),
    ],
)
def test_sizes_of_one_machine(cores, gpus, given, models, threads, decoders):
    sizes = choose_sizes(cores, gpus, **{"threads": None, "concurrency": None, **given})
    assert (sizes.models, sizes.threads, sizes.decoders) == (models, threads, decoders)
    assert sizes.gpus == min(gpus, 1)
    assert sizes.writers >= 1


def test_no_machine_of_a_cluster_is_asked_for_more_cores_than_it_has():
    for nodes in (1, 2, 3, 8):
        for cores in (1, 2, 5, 12, 32):
            for threads in (None, 1, 4, 64):
                sizes = choose_sizes(
                    nodes * cores, 0, threads=threads, concurrency=None, nodes=nodes
                )
                assert 1 <= sizes.cpus <= cores
                assert sizes.models >= nodes
                assert sizes.models * sizes.cpus <= nodes * cores
