"""One row of the coverage table on its way: trace, plan, rewrite, and the properties that must hold."""

from __future__ import annotations

import copy
import functools
import warnings
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from sparsify import api
from sparsify.errors import BudgetError, UnsupportedModelError
from sparsify.graph.facts import Facts, facts
from sparsify.graph.trace import trace
from sparsify.graph.traced import Traced
from sparsify.passes import rewrite
from sparsify.planning import Plan, plan
from tests.coverage.counting import count_flops
from tests.coverage.rows import Example, Row
from tests.coverage.table import EVERYTHING

TOLERANCE = 1e-3


class Subject:
    """A row's model with its trace, its facts and its dense FLOPs, shared by all combinations."""

    def __init__(self, row: Row) -> None:
        self.row = row
        self.model = row.model()
        args, kwargs = row.inputs()
        self.traced: Traced = trace(self.model, args, kwargs)
        self.facts: Facts = facts(self.traced)
        self.example: Example = (self.traced.args, self.traced.kwargs)

    @functools.cached_property
    def dense_flops(self) -> float:
        """FLOPs of the given model at the example, as torch counts them."""
        return count_flops(self.model, self.example)

    def other_example(self) -> Example:
        """Inputs of another batch size, and length where the model takes another."""
        fixed = {refusal.reason.partition(" of this")[0][-1] for refusal in self._fixed()}
        batch = self.row.batch if "0" in fixed else 2 * self.row.batch + 1
        return self.row.inputs(batch, self.row.length if fixed else self.row.length + 7, seed=2)

    def _fixed(self) -> list[Any]:
        return [refusal for refusal in self.traced.refusals if refusal.rule == "fixed-dimension"]

    def called_layers(self) -> set[str]:
        """Linear layers and convolutions that a call of the model runs."""
        kinds = (nn.Linear, nn.modules.conv._ConvNd)
        called: set[str] = set()
        hooks = [
            module.register_forward_pre_hook(lambda *_, name=name: called.add(name))
            for name, module in self.model.named_modules()
            if isinstance(module, kinds)
        ]
        outputs(self.model, self.example)
        for hook in hooks:
            hook.remove()
        return called


@functools.lru_cache(maxsize=2 if EVERYTHING else None)
def subject(row: Row) -> Subject:
    """The subject of a row; those of the default run are kept, of the whole table the latest only."""
    return Subject(row)


def outputs(model: nn.Module, example: Example) -> list[Tensor]:
    """Tensors that a model returns, in eval mode."""
    model.eval()
    args, kwargs = example
    with torch.no_grad():
        return [leaf for leaf in tree_leaves(model(*args, **kwargs)) if isinstance(leaf, Tensor)]


def assert_same(first: list[Tensor], second: list[Tensor], tolerance: float = 0.0) -> None:
    """Two lists of outputs are equal, to a tolerance relative to the largest entry."""
    assert first and len(first) == len(second)
    for a, b in zip(first, second, strict=True):
        assert a.shape == b.shape
        assert torch.equal(torch.isfinite(a), torch.isfinite(b))
        scale = a[torch.isfinite(a)].abs().max().item() if a.numel() and a.is_floating_point() else 0.0
        torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance * max(scale, 1e-3))


class Case:
    """A subject planned and rewritten with some options."""

    def __init__(self, of: Subject, **options: Any) -> None:
        self.of, self.options = of, options
        self.plan: Plan = plan(of.traced, facts=of.facts, **options)

    @functools.cached_property
    def result(self) -> torch.fx.GraphModule:
        """The rewritten model."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            return rewrite(self.of.traced, self.plan, facts=self.of.facts)

    def check_flops(self) -> None:
        """FLOPs counted by torch are the plan's, and within a thousandth of the dense model's."""
        dense, sparse = self.of.dense_flops, count_flops(self.result, self.of.example)
        assert self.plan.flops.dense == dense
        assert abs(self.plan.flops.sparse / sparse - 1) < 1e-5
        assert abs(sparse / dense - 1) <= max(TOLERANCE, self._step() / dense)

    def _step(self) -> float:
        """FLOPs of the cheapest weight that a mask can add or leave out."""
        return min(
            layer.flops / max(1, layer.nnz) for layer in self.plan.layers if layer.masked and layer.flops
        )

    def check_counts(self) -> None:
        """Every masked tensor has exactly the planned number of weights, and nothing outside of its mask."""
        found = 0
        for layer in self.plan.layers:
            for tensor in layer.tensors:
                weight = self.result.get_parameter(tensor.fqn)
                assert tuple(weight.shape) == tensor.shape
                if tensor.masked:
                    mask = self.result.get_buffer(f"{tensor.fqn}_mask")
                    assert int(mask.sum()) == int(torch.count_nonzero(weight)) == tensor.nnz
                    found += 1
                    assert not weight[~mask].any()
        assert found

    def check_every_layer_is_accounted_for(self) -> None:
        """Each layer that runs is transformed, or a refusal says why not."""
        done = {layer.fqn for layer in self.plan.layers if layer.masked}
        named = done | {refusal.fqn for refusal in self.plan.refusals}
        assert all(refusal.reason.strip() and refusal.rule for refusal in self.plan.refusals)
        named |= {name.rpartition(".")[0] for name in named}
        for tie in self.of.traced.ties:
            owners = {name.rpartition(".")[0] for name in tie}
            named |= owners if owners & named else set()
        assert self.of.called_layers() - named == set()

    def check_runs(self) -> None:
        """It computes finite numbers, also for another batch size and length, and in training mode trains."""
        for example in (self.of.example, self.of.other_example()):
            found = outputs(self.result, example)
            assert found and all(not out.isnan().any() for out in found)
        args, kwargs = self.of.example
        self.result.train()
        leaves = [leaf for leaf in tree_leaves(self.result(*args, **kwargs)) if isinstance(leaf, Tensor)]
        loss = sum(
            leaf[torch.isfinite(leaf)].square().mean()
            for leaf in leaves
            if leaf.requires_grad and leaf.numel()
        )
        loss.backward()
        self.result.eval()
        masked = [tensor.fqn for layer in self.plan.layers for tensor in layer.tensors if tensor.masked]
        reached = 0
        for fqn in masked:
            gradient = self.result.get_parameter(fqn).grad
            if gradient is not None:
                assert not gradient[~self.result.get_buffer(f"{fqn}_mask")].any()
                reached += bool(gradient.any())
        assert reached > 0.5 * len(masked)  # layers that see zeros only, as a first query, have none
        self.result.zero_grad()

    def check_state_dict(self) -> None:
        """The state_dict carries everything from one copy to another."""
        other = copy.deepcopy(self.result)
        with torch.no_grad():
            for parameter in other.parameters():
                parameter.zero_()
        other.load_state_dict(self.result.state_dict())
        assert_same(outputs(self.result, self.of.example), outputs(other, self.of.example))

    def check_archive(self, folder: Path) -> None:
        """A saved and loaded model computes the same and knows its plan."""
        path = folder / "model.pt2"
        api.save(self.result, path)
        loaded = api.load(path)
        assert loaded.sparsify.plan == self.plan  # type: ignore[union-attr]
        assert_same(flat(self.result, self.of.example), flat(loaded, self.of.example), 1e-6)

    def check_compile(self, backend: str) -> None:
        """torch.compile takes the model."""
        torch._dynamo.reset()
        compiled = torch.compile(self.result, backend=backend)
        expected = outputs(self.result, self.of.example)
        args, kwargs = self.of.example
        with torch.no_grad():
            found = [leaf for leaf in tree_leaves(compiled(*args, **kwargs)) if isinstance(leaf, Tensor)]
        assert_same(expected, found, 1e-4)

    def check_onnx(self, folder: Path) -> None:
        """Export ends with a parity check; where torch.onnx cannot, the row says why and the error does."""
        path = folder / "model.onnx"
        if self.of.row.onnx is None:
            report = api.export(self.result, path)
            assert path.exists() and report.max_abs_error is not None
            return
        try:
            api.export(self.result, path)
        except UnsupportedModelError as error:
            assert fnmatch(str(error).lower(), f"*{self.of.row.onnx.lower()}*"), error
        else:
            raise AssertionError(f"{self.of.row.name} exports now: its row says {self.of.row.onnx}")

    def drop(self) -> None:
        """Forgets the rewritten model."""
        self.__dict__.pop("result", None)


flat = outputs


def check_width(of: Subject, **options: Any) -> None:
    """With a width, the density is solved; or the error names the largest width, and that is feasible."""
    try:
        case = Case(of, **options)
    except BudgetError as error:
        if error.largest_width is None:
            raise
        assert f"{error.largest_width:g}" in str(error)
        assert 1 <= error.largest_width < options["width"]
        case = Case(of, **{**options, "width": error.largest_width})
    assert abs(case.plan.flops.ratio - 1) <= TOLERANCE
