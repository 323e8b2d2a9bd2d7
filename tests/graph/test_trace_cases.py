"""Models that are harder to capture than the usual ones, and the messages where they cannot be."""

from __future__ import annotations

import copy
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

from sparsify.errors import UnsupportedModelError, UserError
from sparsify.graph.modules import ScaledDotProductAttention
from sparsify.graph.trace import trace
from tests.models import MLP, MODELS


def kinds(module: nn.Module) -> dict[str, type[nn.Module]]:
    return {
        name: type(child) for name, child in module.named_modules() if type(child) is not nn.Module and name
    }


def check(model: nn.Module, *args: Tensor, other: tuple[Tensor, ...] | None = None) -> torch.fx.GraphModule:
    """Traces in eval mode and compares with the original, also in training with the same seed."""
    reference = copy.deepcopy(model)
    traced = trace(model, args)
    for inputs in (args, *([other] if other else [])):
        torch.testing.assert_close(traced.module.eval()(*inputs), reference.eval()(*inputs))
        torch.manual_seed(0)
        expected = reference.train()(*inputs)
        torch.manual_seed(0)
        torch.testing.assert_close(traced.module.train()(*inputs), expected)
    return traced.module


class Model(nn.Module):
    """A model from layers and a function of (self, x)."""

    def __init__(self, function: Callable[..., Tensor], **layers: nn.Module | nn.Parameter) -> None:
        super().__init__()
        for name, layer in layers.items():
            setattr(self, name, layer)
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


X = torch.randn(3, 8)


def test_a_parameter_multiplied_functionally_becomes_a_linear() -> None:
    weight, out = nn.Parameter(torch.randn(8, 5)), nn.Parameter(torch.randn(4, 5))
    model = Model(lambda m, x: F.linear(torch.tanh(x @ m.w), m.out_weight), w=weight, out_weight=out)
    traced = trace(model, (X,))
    assert kinds(traced.module) == {"w": nn.Linear, "out": nn.Linear}
    assert traced.key_map["w.weight"].key == "w" and traced.key_map["w.weight"].transposed
    assert traced.key_map["out.weight"].key == "out_weight" and not traced.key_map["out.weight"].transposed
    torch.testing.assert_close(traced.module(X), model(X))


def test_a_tied_matrix_used_functionally_stays_where_it_is() -> None:
    ids = torch.tensor([[1, 2, 3], [4, 5, 6]])
    model = Model(lambda m, x: F.linear(m.table(x), m.table.weight), table=nn.Embedding(11, 8))
    traced = trace(model, (ids,))
    assert kinds(traced.module) == {"table": nn.Embedding}
    assert set(traced.module.state_dict()) == {"table.weight"}
    torch.testing.assert_close(traced.module(ids), model(ids))


def test_a_layer_called_twice_is_one_module() -> None:
    module = check(Model(lambda m, x: m.fc(torch.relu(m.fc(x))), fc=nn.Linear(8, 8)), X, other=(X[:2],))
    assert len([n for n in module.graph.nodes if n.target == "fc"]) == 2


def test_multihead_attention_with_dropout() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.3, batch_first=True)
    x = torch.randn(2, 5, 8)
    module = check(layer, x, other=(torch.randn(4, 5, 8),))
    found = kinds(module)
    assert found["self_attn.in_proj"] is nn.Linear and found["self_attn.out_proj"] is nn.Linear
    assert [type(m) for m in module.modules()].count(ScaledDotProductAttention) == 1


def test_in_place_calls_take_their_functional_form() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        y = m.fc(x)
        z = y * 2
        y.relu_().add_(1)
        return y + z

    module = check(Model(function, fc=nn.Linear(8, 8)), X, other=(X[:2],))
    names = [str(n.target) for n in module.graph.nodes]
    assert "aten.relu.default" in names and not any(name.endswith("_.default") for name in names)


def test_writing_through_a_view() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        y = m.fc(x)
        y[:, :4] *= 2
        y[:, 1] = 0
        return y

    check(Model(function, fc=nn.Linear(8, 8)), X, other=(X[:2],))


def test_no_grad_regions_stay_cut() -> None:
    def function(m: nn.Module, x: Tensor) -> Tensor:
        with torch.no_grad():
            scale = m.fc(x).mean()
        return m.fc(x) * scale

    model = Model(function, fc=nn.Linear(8, 8))
    reference = copy.deepcopy(model)
    module = trace(model, (X,)).module
    module(X).sum().backward()
    reference(X).sum().backward()
    torch.testing.assert_close(module.get_parameter("fc.weight").grad, reference.fc.weight.grad)


def test_layers_of_every_kind() -> None:
    conv = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding="same", dilation=2),
        nn.GroupNorm(2, 8),
        nn.Conv2d(8, 8, 3, stride=2, groups=4, padding_mode="circular", padding=1),
        nn.BatchNorm2d(8, affine=False),
        nn.BatchNorm2d(8, track_running_stats=False),
        nn.Dropout2d(0.4),
        nn.PReLU(),
        nn.ConvTranspose2d(8, 4, 2, stride=2),
        nn.InstanceNorm2d(4, affine=True),
    )
    module = check(conv, torch.randn(3, 3, 12, 12), other=(torch.randn(2, 3, 12, 12),))
    assert set(kinds(module).values()) == {type(layer) for layer in conv}
    text = nn.Sequential(nn.Linear(8, 8), nn.RMSNorm(8), nn.LayerNorm(8, bias=False), nn.AlphaDropout(0.2))
    found = kinds(check(text, X, other=(X[:2],)))
    assert list(found.values()) == [nn.Linear, nn.RMSNorm, nn.LayerNorm, nn.AlphaDropout]
    series = nn.Sequential(nn.Conv1d(4, 6, 3), nn.BatchNorm1d(6))
    assert set(kinds(check(series, torch.randn(3, 4, 9))).values()) == {nn.Conv1d, nn.BatchNorm1d}
    volume = nn.Sequential(nn.Conv3d(1, 2, 2), nn.BatchNorm3d(2))
    assert set(kinds(check(volume, torch.randn(3, 1, 4, 4, 4))).values()) == {nn.Conv3d, nn.BatchNorm3d}


def test_names_that_clash_with_the_graph_module_are_mapped() -> None:
    model = Model(lambda m, x: m.graph(m.meta(x)), graph=nn.Linear(8, 8), meta=nn.Linear(8, 8))
    traced = trace(model, (X,))
    assert {s.key for s in traced.key_map.values()} == set(model.state_dict())
    torch.testing.assert_close(traced.module(X), model(X))


def test_unused_parameters_are_kept() -> None:
    model = Model(lambda m, x: m.used(x), used=nn.Linear(8, 8), unused=nn.Linear(8, 8), free=nn.Parameter(X))
    assert set(trace(model, (X,)).module.state_dict()) == set(model.state_dict())


def test_a_pruned_model_is_folded_its_mask_adopted_and_the_model_left_alone() -> None:
    model = MLP().eval()
    prune.l1_unstructured(model.inner[0], "weight", amount=0.5)
    before = set(model.state_dict())
    x = torch.randn(3, 12)
    expected = model(x)
    traced = trace(model, (x,))
    assert torch.equal(traced.module(x), expected)
    layer = traced.module.get_submodule("inner.0")
    assert layer.weight_mask.dtype == torch.bool and int(layer.weight_mask.sum()) == layer.weight.numel() // 2
    assert torch.equal(layer.weight != 0, layer.weight_mask)
    assert traced.key_map["inner.0.weight"].key == "inner.0.weight_orig"
    assert set(model.state_dict()) == before and prune.is_pruned(model)
    assert torch.equal(model(x), expected)


def test_parametrizations_are_folded() -> None:
    model = MLP().eval()
    parametrizations.weight_norm(model.head)
    x = torch.randn(3, 12)
    expected = model(x)
    module = trace(model, (x,)).module
    torch.testing.assert_close(module(x), expected)
    assert type(module.get_submodule("head")) is nn.Linear
    assert hasattr(model.head, "parametrizations")
    torch.testing.assert_close(model(x), expected)


def test_the_model_is_left_as_it_was() -> None:
    entry = MODELS["gpt2"]
    model = entry.model().train()
    model.transformer.drop.eval()
    modes = {name: module.training for name, module in model.named_modules()}
    traced = trace(model, *entry.example(2, 8))
    assert {name: module.training for name, module in model.named_modules()} == modes
    assert model.config.use_cache is True
    assert traced.module.training


def test_size_one_is_repeated_and_stays_open() -> None:
    traced = trace(MLP().eval(), (torch.randn(1, 12),))
    assert traced.args[0].shape == (2, 12)
    assert traced.module(torch.randn(7, 12)).shape == (7, 5)
    fixed = trace(MLP().eval(), (torch.randn(1, 12),), dynamic=False)
    assert fixed.args[0].shape == (1, 12)


class StochasticDepth(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            return x * (torch.rand(x.shape[0], 1) > 0.5)
        return x


def test_what_training_does_besides_is_refused_by_name() -> None:
    model = nn.Sequential(nn.Linear(8, 8), StochasticDepth(), nn.Linear(8, 8))
    traced = trace(model, (X,))
    assert [(r.fqn, r.rule) for r in traced.refusals] == [("1", "training-mode")]
    assert "rand" in traced.refusals[0].reason


def test_a_batch_that_the_model_fixes_is_named() -> None:
    model = Model(lambda m, x: m.fc(x.reshape(3, 8)), fc=nn.Linear(8, 8))
    traced = trace(model, (X,))
    assert [(r.fqn, r.rule) for r in traced.refusals] == [("x", "fixed-dimension")]


def test_a_branch_on_values_says_where_and_what_to_do() -> None:
    inner = Model(lambda m, x: m.fc(x) if x.sum() > 0 else x, fc=nn.Linear(8, 8))
    with pytest.raises(UnsupportedModelError, match=r"(?s)at 1 \(.*test_trace_cases\.py:\d+\).*torch\.where"):
        trace(nn.Sequential(nn.Linear(8, 8), inner), (X,))


def test_a_buffer_that_changes_is_named() -> None:
    class Counting(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.fc = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            return self.fc(x) * self.calls

    with pytest.raises(UnsupportedModelError, match="calls"):
        trace(Counting(), (X,))


def test_control_flow_on_data_is_named() -> None:
    model = Model(
        lambda m, x: torch.cond(x.sum() > 0, lambda y: y.sin(), lambda y: y.cos(), (m.fc(x),)),
        fc=nn.Linear(8, 8),
    )
    with pytest.raises(UnsupportedModelError, match="cond"):
        trace(model, (X,))


def test_an_example_that_does_not_run_is_the_users_to_mend() -> None:
    with pytest.raises(UserError, match="example"):
        trace(MLP(), (torch.randn(3, 13),))
    with pytest.raises(UserError, match="forward"):
        trace(MLP(), (X, X, X))
    with pytest.raises(UserError, match="forward"):
        trace(MLP(), (), {"x": X, "mask": X})


def test_dict_inputs_and_outputs_keep_their_structure() -> None:
    class Dicts(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, batch: dict[str, Tensor], scale: float = 1.0) -> dict[str, object]:
            return {"out": [self.fc(batch["x"]) * scale, None], "mask": (batch["m"],)}

    model = Dicts()
    batch = {"x": X, "m": X > 0}
    out = trace(model, (batch,), {"scale": 2.0}).module(batch, scale=2.0)
    expected = model(batch, scale=2.0)
    assert list(out) == ["out", "mask"] and out["out"][1] is None and isinstance(out["mask"], tuple)
    torch.testing.assert_close(out["out"][0], expected["out"][0])


def test_a_size_one_that_is_no_batch_is_kept_and_named() -> None:
    model = Model(lambda m, x: m.fc(x[0] + x[1]), fc=nn.Linear(8, 8))
    traced = trace(model, ((torch.randn(3, 8), torch.randn(1, 8)),))
    assert traced.args[0][1].shape == (1, 8)
    fixed = Model(lambda m, x: m.fc(x.reshape(8)), fc=nn.Linear(8, 8))
    traced = trace(fixed, (torch.randn(1, 8),))
    assert [(r.fqn, r.rule) for r in traced.refusals] == [("x", "fixed-dimension")]


def test_explicit_dynamic_shapes_repeat_size_one_too() -> None:
    traced = trace(MLP().eval(), (torch.randn(1, 12),), dynamic_shapes={"x": {0: torch.export.Dim("batch")}})
    assert traced.args[0].shape == (2, 12)
    assert traced.module(torch.randn(7, 12)).shape == (7, 5)


def test_keyword_inputs_may_come_in_any_order() -> None:
    entry = MODELS["bert"]
    model = entry.model()
    _, kwargs = entry.example(2, 8)
    traced = trace(model, (), dict(reversed(kwargs.items())))
    expected = model(**kwargs)
    for order in (kwargs, dict(reversed(kwargs.items()))):
        assert torch.equal(traced.module(**order).last_hidden_state, expected.last_hidden_state)


def test_variadic_inputs() -> None:
    class Sum(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(8, 8)

        def forward(self, *parts: Tensor, scale: float) -> Tensor:
            return self.fc(sum(parts)) * scale

    model = Sum()
    module = trace(model, (X, X + 1), {"scale": 2.0}).module
    y = torch.randn(5, 8)
    torch.testing.assert_close(module(y, y, scale=2.0), model(y, y, scale=2.0))
