"""A traced model computes what the original computes: values, gradients, statistics, structure."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsify.graph.modules import ScaledDotProductAttention
from sparsify.graph.trace import trace
from sparsify.graph.traced import Traced
from tests.models import MINILM, MODELS, TestModel

EPSILON = torch.finfo(torch.float32).eps
ENTRIES = {**MODELS, "minilm": MINILM}


@pytest.fixture(scope="module", params=ENTRIES)
def case(request: pytest.FixtureRequest) -> tuple[TestModel, nn.Module, Traced]:
    entry = ENTRIES[request.param]
    model = entry.model()
    torch.manual_seed(1)
    return entry, model, trace(model, *entry.example(2, 8))


def without_dropout(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, ScaledDotProductAttention):
            module.dropout_p = 0.0
    return model


def call(model: nn.Module, example: Any) -> Any:
    args, kwargs = example
    config = getattr(model, "config", None)
    if getattr(config, "use_cache", False):
        kwargs = kwargs | {"use_cache": False}
    return model(*args, **kwargs)


def assert_close(actual: Any, expected: Any, factor: float = 64) -> None:
    left, right = tree_leaves(actual), tree_leaves(expected)
    assert left and len(left) == len(right)
    for a, b in zip(left, right, strict=True):
        scale = max(1.0, float(b.detach().abs().max()))
        torch.testing.assert_close(a, b, rtol=0, atol=factor * EPSILON * scale)


@pytest.mark.parametrize(("batch", "length"), [(2, 8), (1, 8), (3, 13), (5, 2)])
def test_outputs_equal_at_other_sizes(case: Any, batch: int, length: int) -> None:
    entry, model, traced = case
    torch.manual_seed(batch)
    example = entry.example(batch, length)
    model.eval(), traced.module.eval()
    with torch.no_grad():
        expected, actual = call(model, example), traced.module(*example[0], **example[1])
    assert type(actual) is type(expected)
    if isinstance(expected, dict):
        assert list(actual) == list(expected)
    assert_close(actual, expected)


def test_training_equals_with_and_without_dropout(case: Any) -> None:
    """With the same seed even the dropped entries are the same, attention's included."""
    entry, model, traced = case
    theirs, ours = copy.deepcopy(model).train(), copy.deepcopy(traced.module).train()
    torch.manual_seed(7)
    example = entry.example(4, 9)
    for dropout in (True, False):
        if not dropout:
            without_dropout(theirs), without_dropout(ours)
        theirs.zero_grad(), ours.zero_grad()
        torch.manual_seed(3)
        expected = call(theirs, example)
        torch.manual_seed(3)
        actual = ours(*example[0], **example[1])
        assert_close(actual, expected)
        sum(t.square().mean() for t in tree_leaves(expected)).backward()
        sum(t.square().mean() for t in tree_leaves(actual)).backward()
        assert_gradients_equal(traced, ours, theirs)
        buffers = dict(theirs.named_buffers())
        for key, buffer in ours.named_buffers():
            if key in traced.key_map:
                assert_close(buffer, buffers[traced.key_map[key].key])


def assert_gradients_equal(traced: Traced, ours: nn.Module, theirs: nn.Module) -> None:
    gradients = {name: p.grad for name, p in theirs.named_parameters(remove_duplicate=False)}
    compared = 0
    for key, parameter in ours.named_parameters():
        source = traced.key_map[key]
        expected = gradients[source.key]
        if expected is None:
            assert parameter.grad is None
            continue
        assert_close(parameter.grad, expected.t() if source.transposed else expected, 512)
        compared += 1
    assert compared > 3


def test_train_and_eval_toggle(case: Any) -> None:
    entry, model, traced = case
    kinds = (nn.Dropout, nn.modules.batchnorm._BatchNorm)
    if not any(isinstance(m, kinds) and getattr(m, "p", 1) for m in model.modules()):
        return
    module = copy.deepcopy(traced.module)
    example = entry.example(4, 8)
    with torch.no_grad():
        module.eval()
        first, second = (tree_leaves(module(*example[0], **example[1])) for _ in range(2))
        assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
        module.train()
        trained = tree_leaves(module(*example[0], **example[1]))
    assert not all(torch.equal(a, b) for a, b in zip(first, trained, strict=True))


def test_every_state_dict_key_is_there_and_mapped(case: Any) -> None:
    _, model, traced = case
    state, source = traced.module.state_dict(), model.state_dict()
    assert set(state) == set(traced.key_map)
    assert {s.key for s in traced.key_map.values()} == set(source)
    for key, entry in traced.key_map.items():
        expected = source[entry.key]
        assert torch.equal(state[key], expected.t() if entry.transposed else expected)
        assert state[key].data_ptr() == expected.data_ptr()


def test_a_perturbed_weight_breaks_the_comparison(case: Any) -> None:
    entry, model, traced = case
    module = copy.deepcopy(traced.module)
    linears = [m for m in module.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    with torch.no_grad():
        linears[-1].weight.mul_(1.1)
    example = entry.example(2, 8)
    model.eval(), module.eval()
    with torch.no_grad(), pytest.raises(AssertionError):
        assert_close(module(*example[0], **example[1]), call(model, example))


def test_the_form_is_a_fixed_point(case: Any) -> None:
    """canon(export(canon(m))) = canon(m), modules and training behaviour included."""
    _, _, traced = case
    again = trace(traced.module, traced.args, traced.kwargs, dynamic_shapes=traced.dynamic)
    assert program(again.module) == program(traced.module)
    assert modules(again.module) == modules(traced.module)
    assert dict(again.train_record) == dict(traced.train_record)
    assert set(again.module.state_dict()) == set(traced.module.state_dict())
    assert again.ties == traced.ties


def program(module: torch.fx.GraphModule) -> list[Any]:
    """The graph without names and without the order in which tensors are read."""
    number: dict[torch.fx.Node, Any] = {}
    rows: list[Any] = []
    for node in module.graph.nodes:
        if node.op == "get_attr":
            number[node] = f"get {node.target}"
            continue
        number[node] = f"%{len(rows)}"
        shape = node.meta["val"].shape if isinstance(node.meta.get("val"), Tensor) else None
        args = torch.fx.node.map_arg((node.args, node.kwargs), lambda n: number[n])
        rows.append((node.op, str(node.target), repr(args), None if shape is None else len(shape)))
    return rows


def modules(module: torch.fx.GraphModule) -> dict[str, str]:
    return {name: repr(child) for name, child in module.named_modules() if not list(child.children())}


def test_every_node_knows_its_value_and_its_dialect(case: Any) -> None:
    _, _, traced = case
    owned = 0
    for node in traced.module.graph.nodes:
        if node.op == "output":
            continue
        assert "val" in node.meta, node
        if node.op == "call_module":
            owned += 1
            assert type(traced.module.get_submodule(node.target)) is not nn.Module
        elif node.op == "call_function" and isinstance(node.target, torch._ops.OpOverload):
            assert not node.target._schema.is_mutable
            assert node.target is not torch.ops.aten.linear.default
    assert owned > 2
