"""A pass of a user's: its place in the pipeline, the checks around it, refusals and provenance."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import Refusal, SparsifyError, UserError
from sparsify.passes import PIPELINE, Pass, PassResult, mark
from tests.pages import printed, python_blocks

GUIDE = Path(__file__).parents[2] / "docs" / "writing_a_pass.md"
ATEN = torch.ops.aten


def transformed(*passes: Any, **options: Any) -> Any:
    layers = [nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)]
    options = {"family": "masked", "pipeline": (*PIPELINE, *passes)} | options
    return sparsify.transform(nn.Sequential(*layers), (torch.randn(3, 4),), sparsity=0.5, **options)


class Silu(Pass):
    """Replaces the first ReLU, inserts a negation behind the second, and refuses the rest."""

    name = "silu"

    def run(self, graph: Any, plan: Any) -> PassResult:
        first, second = (node for node in graph.graph.nodes if node.target is ATEN.relu.default)
        first.target = ATEN.silu.default
        with graph.graph.inserting_after(second):
            negated = graph.graph.call_function(ATEN.neg.default, (second,))
        second.replace_all_uses_with(negated, delete_user_cb=lambda user: user is not negated)
        return PassResult(graph, 2, (Refusal("4", self.name, "nothing follows"),))


def node_of(model: Any, target: Any) -> Any:
    return next(node for node in model.graph.nodes if node.target is target)


def test_a_pass_is_run_and_its_result_recorded():
    model = transformed(Silu)
    x = torch.randn(5, 4)
    first, _, second, _, third = (model.get_submodule(str(i)) if i % 2 == 0 else None for i in range(5))
    expected = third(-torch.relu(second(nn.functional.silu(first(x)))))
    torch.testing.assert_close(model(x), expected)
    assert Refusal("4", "silu", "nothing follows") in model.sparsify.plan.refusals


def test_new_and_changed_nodes_say_where_they_come_from():
    model = transformed(Silu)
    changed, added = node_of(model, ATEN.silu.default), node_of(model, ATEN.neg.default)
    assert changed.meta["provenance"] == ({"pass": "silu", "origin": changed.name},)
    assert added.meta["provenance"] == ({"pass": "silu", "origin": added.args[0].name},)
    untouched = node_of(model, ATEN.relu.default)
    assert all(entry["pass"] != "silu" for entry in untouched.meta.get("provenance", ()))


def test_new_nodes_get_shapes_with_an_open_batch():
    shape = node_of(transformed(Silu), ATEN.neg.default).meta["val"].shape
    assert isinstance(shape[0], torch.SymInt)
    assert shape[1] == 16


def test_provenance_of_the_pass_itself_is_kept():
    class Marking(Silu):
        name = "marking"

        def run(self, graph: Any, plan: Any) -> PassResult:
            done = super().run(graph, plan)
            mark(node_of(graph, ATEN.neg.default), self.name, "somewhere")
            return done

    entries = node_of(transformed(Marking), ATEN.neg.default).meta["provenance"]
    assert entries == ({"pass": "marking", "origin": "somewhere"},)


def test_passes_are_seen_in_order():
    seen: list[str] = []
    pipeline = (*PIPELINE[:1], Silu, *PIPELINE[1:])
    model = transformed(pipeline=pipeline, observe=lambda name, result: seen.append(name))
    assert seen == [step.name for step in pipeline]
    assert node_of(model, ATEN.silu.default)


def broken(change: Any, count: int = 1) -> type[Pass]:
    class Broken(Pass):
        name = "broken"

        def run(self, graph: Any, plan: Any) -> Any:
            change(node_of(graph, ATEN.relu.default))
            return PassResult(graph, count)

    return Broken


def set_target(target: Any) -> Any:
    return lambda node: setattr(node, "target", target)


def misfit(node: Any) -> None:
    with node.graph.inserting_after(node):
        made = node.graph.call_function(ATEN.reshape.default, (node, [-1, 7]))
    node.replace_all_uses_with(made, delete_user_cb=lambda user: user is not made)


@pytest.mark.parametrize(
    ("step", "reason"),
    [
        (broken(set_target(nn.functional.silu)), "neither an operator overload"),
        (broken(set_target(torch.relu)), "neither an operator overload"),
        (broken(set_target(ATEN.silu.default), count=0), "counted no change"),
        (broken(misfit), "reshape .* cannot run on its shapes"),
    ],
)
def test_a_pass_that_breaks_the_contract_is_named(step, reason):
    with pytest.raises(SparsifyError, match=reason):
        transformed(step)


def test_a_result_of_another_type_is_refused():
    class Nothing(Pass):
        name = "nothing"

        def run(self, graph: Any, plan: Any) -> Any:
            return None

    with pytest.raises(SparsifyError, match=r"'nothing'.*must return a PassResult, not NoneType"):
        transformed(Nothing)


def test_ensures_is_run_on_the_result():
    class Promising(Silu):
        name = "promising"

        def ensures(self, graph: Any, plan: Any) -> None:
            if any(node.target is ATEN.relu.default for node in graph.graph.nodes):
                raise self.failed("a ReLU is left")

    with pytest.raises(SparsifyError, match=r"'promising': a ReLU is left; this is a bug of the pass, see"):
        transformed(Promising)


def test_the_given_model_must_not_change():
    with pytest.raises(SparsifyError, match=r"changed node .* of the given model"):
        transformed(pipeline=(broken(set_target(ATEN.silu.default)), *PIPELINE))


@pytest.mark.parametrize(
    ("pipeline", "reason"),
    [
        (PIPELINE[1:], "'wide' is missing"),
        ((*PIPELINE, PIPELINE[0]), "two passes are called 'wide'"),
        ((*PIPELINE, object()), "is no pass"),
        ((*PIPELINE, type("Nameless", (Silu,), {"name": ""})), "has no name"),
    ],
)
def test_a_pipeline_that_is_none_is_refused(pipeline, reason):
    with pytest.raises(UserError, match=reason):
        transformed(pipeline=pipeline)


def test_the_guides_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (block,) = python_blocks(GUIDE)
    out = printed(block)
    assert out.count("'approximate': 'tanh'") == 2
    assert out.count("'pass': 'tanh gelu'") == 2
    assert "4 tanh gelu follows a layer that was to be left alone" in out
