"""Cost is linear in depth, counted and not timed; the meta device is enough to plan and to rewrite."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

import sparsify
from sparsify.graph import couplings, verify
from sparsify.graph.facts import facts
from sparsify.graph.poly import Poly
from sparsify.graph.trace import trace
from sparsify.graph.traced import Traced
from sparsify.graph.widths import Widths
from sparsify.passes import rewrite
from sparsify.planning import plan

SIZES = {"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 8, "num_key_value_heads": 2}


def on_meta(depth: int) -> Traced:
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=depth, vocab_size=50)).eval()
        ids = torch.zeros(2, 8, dtype=torch.long)
    return trace(model, (), {"input_ids": ids})


@pytest.fixture(scope="module")
def traces() -> dict[int, Traced]:
    return {depth: on_meta(depth) for depth in (1, 2, 4)}


def counted(traced: Traced, monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """How often the work that everything else is made of is done on the way to the rewritten model."""
    counts: Counter[str] = Counter()

    def counting(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def wrapped(*args: Any, **kwargs: Any) -> Any:
            counts[name] += 1
            return original(*args, **kwargs)

        monkeypatch.setattr(owner, name, wrapped)

    with monkeypatch.context() as monkeypatch:
        counting(couplings, "_visit")
        counting(Widths, "resolve")
        counting(Widths, "unify")
        counting(Poly, "__init__")
        counting(verify, "_run_node")
        counting(torch.nn.Module, "get_submodule")
        found = facts(traced)
        rewrite(traced, plan(traced, facts=found), facts=found)
    return counts


def test_work_grows_as_the_nodes_do(traces, monkeypatch):
    counts = {depth: counted(traced, monkeypatch) for depth, traced in traces.items()}
    assert counts[1].keys() == counts[4].keys()
    assert len(counts[2]) == 6
    for name in counts[2]:
        # Between 1, 2 and 4 layers, the second step is twice the first where cost is linear.
        first, second = counts[2][name] - counts[1][name], counts[4][name] - counts[2][name]
        assert second <= 2.1 * first, f"{name}: {[counts[depth][name] for depth in (1, 2, 4)]}"


def test_a_model_on_the_meta_device_is_planned_and_rewritten(traces):
    made = sparsify.transform(traces[2], sparsity=0.75)
    assert made.sparsify.plan.flops.ratio == pytest.approx(1, abs=1e-3)
    assert all(tensor.is_meta for tensor in (*made.parameters(), *made.buffers()))
    layer = next(layer for layer in made.sparsify.plan.layers if layer.masked)
    assert made.get_parameter(layer.weight).shape == torch.Size(layer.shape)
    assert made.get_buffer(f"{layer.weight}_mask").shape == torch.Size(layer.shape)
    ids = torch.zeros(3, 11, dtype=torch.long, device="meta")
    assert made(input_ids=ids).logits.shape == (3, 11, 50)


def test_the_meta_device_gives_the_plan_of_the_real_model(traces):
    model = LlamaForCausalLM(LlamaConfig(**SIZES, num_hidden_layers=2, vocab_size=50)).eval()
    real = trace(model, (), {"input_ids": torch.zeros(2, 8, dtype=torch.long)})
    assert plan(real, sparsity=0.5) == plan(traces[2], sparsity=0.5)
