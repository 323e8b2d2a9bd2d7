"""ONNX Runtime's CUDA provider with the sparse operators, against the reference: `make test-gpu`."""

from __future__ import annotations

import dataclasses
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from sparsify.errors import RuntimeLibraryError
from sparsify.runtime import Session, bench, cuda, layouts
from tests.gpu.ort_cases import DTYPES, PRECISIONS, STAY, Case, conv_cases, linear_cases, run_bound
from tests.runtime.graphs import masked, sparse_mlp, values

STATE = cuda.cuda_state()
pytestmark = pytest.mark.skipif(STATE.missing is not None, reason=f"no CUDA provider: {STATE.reason}")
PROVIDERS = (cuda.PROVIDER,)
PRECISION = "ai.sparsify.cuda_precision"


def on_cuda(case: Case, **config: str) -> Session:
    return Session(case.model, providers=PROVIDERS, config=STAY | config)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_products_of_every_layout_and_type(layout: str, dtype: str) -> None:
    for case in linear_cases(layout, dtype):
        session = on_cuda(case)
        case.check(session.run(case.feeds)["y"])
        case.check(run_bound(case, session, "cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", layouts.LAYOUTS)
def test_convolutions_of_every_layout_and_type(layout: str, dtype: str) -> None:
    for case in conv_cases(layout, dtype):
        case.check(on_cuda(case).run(case.feeds)["y"])


@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("layout", ["blocks-8", "blocks-16"])
def test_tensor_cores_at_every_precision(layout: str, dtype: str, precision: str) -> None:
    for case in linear_cases(layout, dtype):
        case.check(on_cuda(case, **{PRECISION: precision}).run(case.feeds)["y"], precision)


@pytest.mark.parametrize("layout", ["blocks-8", "blocks-16"])
def test_tf32_is_taken_only_where_it_is_allowed(layout: str) -> None:
    case = Case("tf32", layouts.pack_linear(masked((256, 512), 0.2), layout=layout), values((128, 512)))
    exact = on_cuda(case).run(case.feeds)["y"]
    case.check(exact)
    rounded = on_cuda(case, **{PRECISION: "tf32"}).run(case.feeds)["y"]
    assert np.abs(rounded - exact).max() > 2.0**-14


def test_what_is_not_finite_stays_in_its_row() -> None:
    x = values((40, 512))
    x[3, :] = np.nan
    for layout in layouts.LAYOUTS:
        case = Case(layout, layouts.pack_linear(masked((64, 512), 0.5), layout=layout), x)
        got = on_cuda(case).run(case.feeds)["y"]
        assert np.isnan(got[3]).all(), layout
        assert np.isfinite(np.delete(got, 3, axis=0)).all(), layout


def test_runs_of_one_session_at_once() -> None:
    packed = layouts.pack_linear(masked((512, 512), 0.1), layout="blocks-16")
    case = Case("four threads", packed, values((200, 512)))
    session = on_cuda(case)
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: session.run(case.feeds)["y"], range(100)):
            case.check(got)


def test_a_model_and_its_benchmark(tmp_path) -> None:
    path = sparse_mlp(tmp_path / "mlp.onnx")
    x = values((70, 24))
    want = Session(path).run({"x": x})["y"]
    np.testing.assert_allclose(Session(path, providers=PROVIDERS).run({"x": x})["y"], want, atol=1e-4)
    report = bench(path, provider="cuda", batches=(1, 70), duration=0.2)
    assert report["provider"] == "cuda"
    assert report["precision"] == {"dense": "tf32", "sparse": "float32"}
    assert report["max_abs_error"] < 1e-2
    assert all(row["speedup"] > 0 for row in report["results"])


def test_damaged_weights_are_an_error_of_the_node() -> None:
    packed = layouts.pack_linear(masked((32, 64), 0.3))
    tensors = [tensor.copy() for tensor in packed.tensors]
    tensors[2][0] = 65535
    case = Case("damaged", dataclasses.replace(packed, tensors=tuple(tensors)), values((1, 64)))
    with pytest.raises(RuntimeLibraryError, match="sparse"):
        on_cuda(case)
