"""Starting kernels: what is refused, what is measured, and what happens without Triton."""

from __future__ import annotations

import importlib
import subprocess
import sys

import pytest
import torch

pytest.importorskip("triton", reason="there is no Triton for this system")

from sparsify.errors import RuntimeLibraryError, UserError
from sparsify.runtime.triton import linear, nm, tuning
from sparsify.runtime.triton.launch import Config, recording
from sparsify.runtime.triton.packing import pack

CPU = torch.device("cpu")
CONFIGS = (Config("first"), Config("second"), Config("third"))


@pytest.fixture(autouse=True)
def _fresh(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tuning, "_CHOSEN", {})
    monkeypatch.delenv(tuning.ENVIRONMENT_VARIABLE, raising=False)


def timed(times: dict[str, float], runs: list[str], key: str = "k") -> None:
    def timer(call) -> float:
        call()
        return times[runs[-1]]

    tuning.run((key,), CONFIGS, lambda config: runs.append(config.name), CPU, timer)


def test_the_fastest_configuration_is_measured_once_and_kept() -> None:
    runs: list[str] = []
    times = {"first": 3.0, "second": 1.0, "third": 2.0}
    timed(times, runs)
    assert runs == ["first", "second", "third", "second"]
    timed(times, runs)
    assert runs[4:] == ["second"]
    timed(times, runs, "other shape")
    assert runs[5:] == ["first", "second", "third", "second"]
    assert [config.name for config in tuning.chosen().values()] == ["second", "second"]
    tuning.forget()
    assert not tuning.chosen()


def test_tuning_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[str] = []
    monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, "0")
    timed({}, runs)
    assert runs == ["first"]
    monkeypatch.setenv(tuning.ENVIRONMENT_VARIABLE, "maybe")
    with pytest.raises(UserError, match="SPARSIFY_GPU_TUNE is 'maybe'"):
        timed({}, runs)


def test_nothing_is_measured_where_nothing_can_be() -> None:
    runs: list[str] = []
    tuning.run(("k",), CONFIGS, lambda config: runs.append(config.name), CPU)
    assert runs == ["first"]


@pytest.mark.parametrize(("programs", "steps", "parts"), [(1, 3, 1), (1, 4, 2), (1, 8, 4), (264, 64, 2)])
def test_sums_are_split_to_fill_the_device(programs: int, steps: int, parts: int) -> None:
    assert tuning.splits(programs, steps) == parts


def test_splits_have_bounds() -> None:
    assert tuning.splits(1, 10**6) == 16
    assert tuning.splits(tuning.PROGRAMS, 10**6) == 1
    assert [tuning.bucket(batch) for batch in (1, 2, 3, 16, 17)] == [1, 2, 4, 16, 32]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: linear.forward(torch.zeros(2, 5), p), "its last extent must be 4"),
        (lambda p: linear.forward(torch.zeros(2, 4).int(), p), "torch.int32 does not fit"),
        (lambda p: linear.forward(torch.zeros(2, 4), p, torch.zeros(3)), r"bias of shape \[3\]"),
        (lambda p: linear.forward(torch.zeros(2, 4), p, None, "swish"), "no fused activation 'swish'"),
        (
            lambda p: linear.forward(torch.zeros(2, 4), p, None, "clip"),
            "bounds go with the activation 'clip'",
        ),
        (lambda p: linear.forward(torch.zeros(2, 4), p, None, "relu", bounds=(0, 1)), "with no other"),
        (lambda p: linear.forward(torch.zeros(2, 4), p, None, "clip", bounds=(1, 0)), "the low one first"),
        (lambda p: linear.forward(torch.zeros(2, 4), p, residual=torch.zeros(2, 4)), r"not of Y's, \[2, 8\]"),
        (lambda p: linear.forward(torch.zeros(2, 4, device="meta"), p), "x lies on meta"),
        (lambda p: linear.input_gradient(torch.zeros(2, 8), p), "packed for inference"),
        (lambda p: linear.weight_gradient(torch.zeros(2, 4), torch.zeros(3, 8), p), "x has 2 rows and dy 3"),
    ],
)
def test_what_does_not_fit(call, message: str) -> None:
    with pytest.raises(UserError, match=message):
        call(pack(torch.ones(8, 4), gradients=False))


def test_a_recorded_call_starts_nothing() -> None:
    packed = pack(torch.ones(8, 4))
    with recording() as launches:
        y = linear.forward(torch.zeros(40, 4), packed)
    assert y.shape == (40, 8)
    assert [launch.config.name for launch in launches] == ["panel-64", "panel-128"]
    assert [launch.grid for launch in launches] == [(8,), (8,)]
    assert launches[0].arguments["bias"] is None


def test_large_batches_of_2_4_go_through_torch_where_it_has_a_form(monkeypatch: pytest.MonkeyPatch) -> None:
    dense = torch.tensor([[1.0, 2.0, 0.0, 0.0], [0.0, 3.0, 4.0, 0.0]])
    packed = pack(dense, layout="nm-2:4")
    assert packed.semi_structured is None
    compressed = type(packed)(**{**vars(packed), "semi_structured": dense})
    x, bias = torch.randn(nm.SEMI_STRUCTURED_BATCH, 4), torch.tensor([1.0, -1.0])
    want = torch.nn.functional.silu(torch.nn.functional.linear(x, dense, bias))
    assert linear.forward(x, compressed, bias, "silu").equal(want)
    with recording() as launches:
        linear.forward(x[1:], compressed, bias, "silu")
        linear.forward(x, packed, bias, "silu")
    assert {launch.name for launch in launches} == {"nm_product"}


def test_without_triton_the_error_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, "sparsify.runtime.triton.language")
    with pytest.raises(RuntimeLibraryError, match=r"sparsify-ift\[gpu\]"):
        importlib.import_module("sparsify.runtime.triton.language")


def test_the_rest_of_the_runtime_loads_neither_triton_nor_torch() -> None:
    code = (
        "import sys, sparsify.runtime, sparsify.runtime.triton, sparsify.runtime.session, sparsify.lowering;"
        "sys.exit(bool({'triton', 'torch'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
