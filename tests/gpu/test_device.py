"""The kernels on a real device, against the NumPy reference: `make test-gpu`."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this system")
pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")

from sparsify.runtime.triton import linear, tuning  # noqa: E402
from sparsify.runtime.triton.epilogue import ACTIVATIONS  # noqa: E402
from sparsify.runtime.triton.packing import pack  # noqa: E402
from tests.runtime.triton.weights import LAYOUTS, bounds_of, close, mask, normal, reference, weight  # noqa: E402

BATCHES = (1, 3, 16, 17, 64, 70, 256)
SHAPES = ((37, 56), (256, 512), (768, 3072))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("layout", [*LAYOUTS, "blocks-64x64"])
def test_product_and_gradients(layout: str, shape: tuple[int, int], dtype: torch.dtype) -> None:
    active = mask(layout, *shape)
    dense = weight(active, dtype)
    packed = pack(dense.cuda(), active, layout=layout)
    bias = normal(shape[0], dtype=dtype, seed=3)
    for batch in BATCHES:
        x, dy = normal(batch, shape[1], dtype=dtype), normal(batch, shape[0], dtype=dtype, seed=2)
        got = linear.forward(x.cuda(), packed, bias.cuda(), "gelu").cpu()
        assert close(got, reference(x, dense, bias, "gelu"), shape[1]), batch
        got = linear.input_gradient(dy.cuda(), packed).cpu()
        assert close(got, reference(dy, dense.t().contiguous()), shape[0]), batch
        got = packed.dense(linear.weight_gradient(x.cuda(), dy.cuda(), packed)).cpu()
        assert close(got, torch.where(active, dy.t().double() @ x.double(), 0).numpy(), batch), batch


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_activations(layout: str, activation: str) -> None:
    active = mask(layout, 256, 512)
    dense, x = weight(active, torch.float32), normal(16, 512, dtype=torch.float32)
    residual = normal(16, 256, dtype=torch.float32, seed=4)
    packed = pack(dense.cuda(), active, layout=layout)
    got = linear.forward(
        x.cuda(), packed, None, activation, residual=residual.cuda(), bounds=bounds_of(activation)
    ).cpu()
    assert close(got, reference(x, dense, None, activation, residual), 512)


def test_tf32_is_taken_only_where_torch_allows_it() -> None:
    active = mask("blocks-64x64", 256, 512)
    dense, x = weight(active, torch.float32), normal(64, 512, dtype=torch.float32)
    packed = pack(dense.cuda(), active, layout="blocks-64x64")
    want = reference(x, dense)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        assert not close(linear.forward(x.cuda(), packed).cpu(), want, 512)
        torch.set_float32_matmul_precision("highest")
        assert close(linear.forward(x.cuda(), packed).cpu(), want, 512)
    finally:
        torch.set_float32_matmul_precision(before)


def test_a_captured_graph_gives_the_same_and_tunes_nothing() -> None:
    active = mask("csr", 256, 512)
    packed = pack(weight(active, torch.float16).cuda(), active)
    x = normal(1, 512, dtype=torch.float16).cuda()
    want = linear.forward(x, packed)
    tuning.forget()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        got = linear.forward(x, packed)
    graph.replay()
    torch.cuda.synchronize()
    assert not tuning.chosen()
    assert torch.allclose(got, want, rtol=1e-2, atol=1e-2)


def test_semi_structured_weights_are_used_at_large_batches() -> None:
    active = mask("nm-2:4", 256, 512)
    dense = weight(active, torch.float16)
    packed = pack(dense.cuda(), active, layout="nm-2:4")
    if torch.cuda.get_device_capability() < (8, 0):
        pytest.skip("no sparse tensor cores")
    assert packed.semi_structured is not None
    x = normal(128, 512, dtype=torch.float16)
    assert close(linear.forward(x.cuda(), packed).cpu(), reference(x, dense), 512)
