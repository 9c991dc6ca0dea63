from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eomt_deploy.benchmarking.paper.baseline.deformable import (
    DeformableAttention,
    cell_centres,
    describe_grids,
    sample,
)
from eomt_deploy.benchmarking.paper.baseline.positions import sine_position

GRIDS = [(2, 3), (4, 6), (8, 12)]
CELLS = 6 + 24 + 96


@pytest.fixture
def official():
    """The module of transformers; imported here, because every test worker imports this file."""
    from transformers.models.mask2former import modeling_mask2former

    return modeling_mask2former


def test_attention_of_transformers(official):
    torch.manual_seed(0)
    ours = DeformableAttention(32, 4, GRIDS, GRIDS)
    for value in ours.parameters():
        torch.nn.init.normal_(value, std=0.3)
    theirs = official.Mask2FormerPixelDecoderEncoderMultiscaleDeformableAttention(
        32, 4, n_levels=3, n_points=4
    )
    names = {
        "value": "value_proj",
        "offset": "sampling_offsets",
        "weight": "attention_weights",
        "out": "output_proj",
    }
    theirs.load_state_dict(
        {f"{names[k.split('.')[0]]}.{k.split('.')[1]}": v for k, v in ours.state_dict().items()}
    )
    x, position = torch.randn(2, CELLS, 32), torch.randn(CELLS, 32)
    reference = cell_centres(GRIDS)[None, :, None].expand(2, -1, 3, -1)
    with torch.no_grad():
        want, _ = theirs(
            x + position,
            encoder_hidden_states=x,
            reference_points=reference,
            spatial_shapes_list=GRIDS,
        )
        torch.testing.assert_close(ours(x + position, x), want, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid", [(1, 1), (5, 3), (7, 12)])
def test_positions_of_transformers(official, grid):
    theirs = official.Mask2FormerSinePositionEmbedding(16, normalize=True)
    want = theirs((1, 3, *grid), torch.device("cpu"), torch.float32)
    want = want[0].flatten(1).T
    torch.testing.assert_close(sine_position(grid, 32), want, atol=1e-4, rtol=0)


@given(
    cell=st.tuples(st.integers(0, 3), st.integers(0, 4)),
    shift=st.tuples(st.floats(0, 1), st.floats(0, 1)),
)
@settings(max_examples=40, deadline=None)
def test_a_place_mixes_its_four_cells_and_nothing_outside(cell, shift):
    height, width = 4, 5
    (row, column), (dy, dx) = cell, shift
    value = torch.randn(1, height * width, 1, 2, generator=torch.Generator().manual_seed(0))
    x, y = (column + dx + 0.5) / width, (row + dy + 0.5) / height
    places = torch.tensor([x, y]).reshape(1, 1, 1, 1, 1, 2)
    found = sample(value, [(height, width)], places, torch.ones(1, 1, 1, 1, 1))
    want = torch.zeros(2)
    for r, c, share in (
        (row, column, (1 - dy) * (1 - dx)),
        (row, column + 1, (1 - dy) * dx),
        (row + 1, column, dy * (1 - dx)),
        (row + 1, column + 1, dy * dx),
    ):
        if r < height and c < width:
            want += share * value[0, r * width + c, 0]
    torch.testing.assert_close(found[0, 0], want, atol=1e-5, rtol=0)


def test_grids_are_described_for_the_kernel():
    assert describe_grids(GRIDS).tolist() == [[2, 3, 0], [4, 6, 6], [8, 12, 30]]


COMPARE = """
import torch
from eomt_deploy.benchmarking.paper.baseline.deformable import describe_grids, sample
from eomt_deploy.benchmarking.paper.baseline.deformable_triton import sample_fused
torch.manual_seed(0)
grids = [(2, 3), (4, 6), (8, 12)]
for width in (8, 12, 32):  # width of a head; 12 is not a power of two
    value = torch.randn(2, 126, 3, width)
    places = torch.rand(2, 45, 3, 3, 4, 2) * 1.6 - 0.3
    weights = torch.rand(2, 45, 3, 3, 4).flatten(3).softmax(-1).unflatten(3, (3, 4))
    value, places, weights = (x.to({device!r}, {dtype}) for x in (value, places, weights))
    fused = sample_fused(value, describe_grids(grids).to({device!r}), places, weights)
    wanted = sample(value.float(), grids, places.float(), weights.float())
    assert fused.dtype == {dtype}
    torch.testing.assert_close(fused.float(), wanted, atol={tolerance}, rtol={tolerance})
"""


def test_fused_kernel_in_the_interpreter():
    """Triton's interpreter runs the kernel on a CPU, if Triton is installed."""
    pytest.importorskip("triton")
    run = subprocess.run(
        [sys.executable, "-c", COMPARE.format(device="cpu", dtype="torch.float32", tolerance=1e-5)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr


@pytest.mark.gpu
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [("torch.float32", 1e-4), ("torch.float16", 2e-3), ("torch.bfloat16", 2e-2)],
)
def test_fused_kernel_on_a_gpu(dtype, tolerance):
    """The sums are FP32, so only the result is rounded."""
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    exec(COMPARE.format(device="cuda", dtype=dtype, tolerance=tolerance), {})


@pytest.mark.gpu
def test_compiled_network_with_the_fused_kernel():
    pytest.importorskip("triton")
    if not torch.cuda.is_available():
        pytest.skip("no NVIDIA GPU")
    from eomt_deploy.benchmarking.paper.ladder import build_step

    images = torch.randint(0, 256, (1, 128, 128, 3), dtype=torch.uint8, device="cuda")
    outputs = []
    for sampling in ("grid_sample", "triton"):
        model = build_step(
            0, "tiny", size=(128, 128), queries=8, classes=5, sampling=sampling, device="cuda"
        )
        outputs.append(torch.compile(model)(images)[0])
    # Masks are thresholded, so rounding may flip a cell.
    torch.testing.assert_close(*outputs, atol=0.02, rtol=0)
