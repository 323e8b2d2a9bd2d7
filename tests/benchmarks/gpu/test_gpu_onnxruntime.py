"""The benchmark of ONNX Runtime's CUDA provider, with the CPU in its place, and that it refuses without."""

from __future__ import annotations

import sys

import pytest

from benchmarks import gpu_onnxruntime
from sparsify.runtime import Session, bench_provider, cuda


@pytest.fixture
def stand_in(monkeypatch: pytest.MonkeyPatch) -> list[Session]:
    """The CPU's provider under CUDA's name; collects what is timed."""
    monkeypatch.setitem(bench_provider.PROVIDERS, "cuda", ("CPUExecutionProvider",))
    timed: list[Session] = []

    def call_of(session, feeds, provider):
        assert provider == "cuda"
        timed.append(session)
        return lambda: session.raw.run(None, feeds)

    monkeypatch.setattr(gpu_onnxruntime, "call_of", call_of)
    return timed


def test_dense_and_sparse_layers_are_timed_in_one_process(stand_in: list[Session]) -> None:
    found = list(gpu_onnxruntime.measured(64, 32, "blocks-16", 0.25, (1, 20), 0.02))
    names = ["dense tf32", "dense float32", "blocks-16 float32", "blocks-16 tf32"]
    assert [record["contender"] for record in found] == names * 2
    assert [record["batch"] for record in found] == [1] * 4 + [20] * 4
    for record in found:
        assert record["us"] > 0
        assert (record["estimated_us"] is None) == (
            record["contender"] in ("dense float32", "blocks-16 tf32")
        )
    assert found[0]["ratio"] == 1.0
    assert {len(session.outputs) for session in stand_in} == {gpu_onnxruntime.COPIES}
    page = gpu_onnxruntime.document_of("Stub GPU", found)
    assert page.startswith("# ONNX Runtime on Stub GPU")
    assert page.count("blocks-16 tf32") == 2


def test_narrow_layouts_are_timed_in_float32_alone() -> None:
    assert gpu_onnxruntime.precisions("blocks-4") == ("float32",)
    assert gpu_onnxruntime.precisions("blocks-8") == ("float32", "tf32")


@pytest.mark.skipif(cuda.cuda_state().missing is None, reason="there is a CUDA provider and a device")
def test_it_refuses_where_there_is_nothing_to_measure(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    monkeypatch.setattr(sys, "argv", ["gpu_onnxruntime"])
    assert gpu_onnxruntime.main() == 1
    assert "nothing to measure: " in capsys.readouterr().err
