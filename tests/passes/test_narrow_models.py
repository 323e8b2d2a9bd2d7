"""Narrowing of whole models: transformers, sparse models, archives, ONNX."""

from __future__ import annotations

import functools

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsify
from sparsify.masks import masked_parameters, set_mask, verify_masks
from tests.models import MLP, MODELS
from tests.passes.narrowing import Narrowing


def case_of(name: str, **changes) -> Narrowing:
    entry = MODELS[name]
    args, kwargs = entry.example(3, 12)
    return Narrowing(entry.model(), *args, **kwargs)


def test_whole_heads_and_ffn_neurons_of_a_vit():
    case = case_of("vit")
    first, second = case.model.vit.layers
    with torch.no_grad():
        first.mlp.fc1.weight[[6, 9]] = 0  # gelu(bias) goes into fc2
        second.mlp.fc2.weight[:, 5] = 0
        second.attention.v_proj.weight[8:16] = 0  # head 1 attends to its own bias
        first.attention.o_proj.weight[:, 16:24] = 0  # nobody reads head 2
        first.attention.o_proj.weight[:, 0:7] = 0  # head 0 but for its last channel
    case.narrow().keeps_outputs().is_smaller().loses(
        {
            "vit.layers.0.attention.q_proj.weight[0]": (2,),
            "vit.layers.0.mlp.fc1.weight[0]": (6, 9),
            "vit.layers.1.attention.q_proj.weight[0]": (1,),
            "vit.layers.1.mlp.fc1.weight[0]": (5,),
        }
    )
    assert case.result.get_submodule("vit.layers.0.attention.v_proj").weight.shape == (24, 32)
    assert "normalizes over it" in case.refusals["vit.layernorm.weight[0]"].reason


def test_behind_a_mask_a_head_goes_only_if_it_emits_zero():
    case = case_of("bert")
    layer = case.model.encoder.layer[1].attention
    with torch.no_grad():
        layer.self.value.weight[8:16] = 0
        layer.self.value.bias[8:16] = 0.5
        case.model.encoder.layer[0].intermediate.dense.weight[3] = 0
    neuron = {"encoder.layer.0.intermediate.dense.weight[0]": (3,)}
    case.narrow().loses(neuron).keeps_outputs()
    layer.self.value.bias.data[8:16] = 0
    head = {"encoder.layer.1.attention.self.query.weight[0]": (1,)}
    case.narrow().loses(neuron | head).keeps_outputs()


def test_queries_that_share_a_key_go_together():
    case = case_of("llama")
    attention, mlp = case.model.model.layers[0].self_attn, case.model.model.layers[1].mlp
    attention.o_proj.weight.data[:, :8] = 0  # one of the two queries of the first key
    mlp.gate_proj.weight.data[4] = 0  # silu(0)·up = 0
    neuron = {"model.layers.1.mlp.gate_proj.weight[0]": (4,)}
    case.narrow().loses(neuron).keeps_outputs()
    attention.o_proj.weight.data[:, 8:16] = 0
    head = {"model.layers.0.self_attn.q_proj.weight[0]": (0,)}
    case.narrow().loses(neuron | head).keeps_outputs()
    projections = ("q_proj", "k_proj", "v_proj", "o_proj")
    shapes = [
        tuple(case.result.get_submodule(f"model.layers.0.self_attn.{p}").weight.shape) for p in projections
    ]
    assert shapes == [(16, 32), (8, 32), (8, 32), (32, 16)]


def test_heads_and_neurons_of_fused_projections():
    case = case_of("gpt2")
    block = case.model.transformer.h[1]
    with torch.no_grad():
        block.attn.c_attn.weight[:, 64 + 8 : 64 + 16] = 0  # values of head 1, [in, out]
        block.attn.c_attn.bias[64 + 8 : 64 + 16] = 0
        block.mlp.c_proj.weight[11] = 0
    case.narrow().keeps_outputs().loses(
        {"transformer.h.1.attn.c_attn.weight[0]": (1,), "transformer.h.1.mlp.c_fc.weight[0]": (11,)}
    )
    kept = [place for place in range(96) if not 8 <= place % 32 < 16]
    assert torch.equal(
        case.result.get_submodule("transformer.h.1.attn.c_attn").weight, block.attn.c_attn.weight.t()[kept]
    )


class EagerAttention(nn.Module):
    """Attention spelled out, with value biases that differ within a head."""

    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = nn.Linear(16, 48), nn.Linear(16, 5, bias=False)

    def forward(self, x):
        n, length, _ = x.shape
        q, k, v = self.qkv(x).view(n, length, 3, 4, 4).permute(2, 0, 3, 1, 4)
        scores = torch.softmax(q @ k.transpose(-2, -1) / 2, -1)
        return self.out((scores @ v).transpose(1, 2).reshape(n, length, 16))


def test_a_head_whose_values_are_its_bias_goes_into_the_next_bias():
    case = Narrowing(EagerAttention(), torch.randn(2, 7, 16))
    case.model.qkv.weight.data[32 + 8 : 32 + 12] = 0
    case.narrow().loses({"qkv.weight[0]": (2,)}).keeps_outputs()
    bias = case.model.qkv.bias[40:44]
    torch.testing.assert_close(case.result.get_submodule("out").bias, case.model.out.weight[:, 8:12] @ bias)


class Skips(nn.Module):
    """A small U-Net: transposed convolution, concatenation with a skip, PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.down, self.deep = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 8, 3, 1, 1)
        self.up, self.slope = nn.ConvTranspose2d(8, 6, 2, 2), nn.PReLU(6)
        self.skip, self.last = nn.Conv2d(3, 4, 1), nn.Conv2d(10, 2, 1)

    def forward(self, x):
        y = self.up(F.relu(self.deep(F.relu(self.down(x)))))
        return self.last(torch.cat([self.slope(y), torch.tanh(self.skip(x))], 1))


def test_transposed_convolutions_and_skips():
    case = Narrowing(Skips(), torch.randn(2, 3, 8, 8))
    with torch.no_grad():
        case.model.deep.weight[3], case.model.deep.bias[3] = 0, -1
        case.model.up.weight[:, 2], case.model.up.bias[2] = 0, -2
        case.model.skip.weight[1], case.model.skip.bias[1] = 0, 0.3
    case.narrow().keeps_outputs().loses(
        {"deep.weight[0]": (3,), "up.weight[1]": (2,), "skip.weight[0]": (1,)}
    )
    case.model.deep.bias.data[3] = 1  # a constant other than 0 makes a pattern of the kernel
    case.narrow().loses({"up.weight[1]": (2,), "skip.weight[0]": (1,)}).keeps_outputs()


class Functional(nn.Module):
    """Layers whose weights are plain parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.b1 = nn.Parameter(torch.randn(8, 4)), nn.Parameter(torch.randn(8))
        self.w2, self.scale = nn.Parameter(torch.randn(3, 8)), nn.Parameter(torch.ones(8))

    def forward(self, x):
        return F.linear(F.relu(F.linear(x, self.w1, self.b1)) * self.scale, self.w2)


def test_a_scale_of_zero_kills_its_channel():
    case = Narrowing(Functional(), torch.randn(2, 4))
    case.model.scale.data[5] = 0
    case.narrow().loses({"scale[0]": (5,)}).keeps_outputs()


class TestSparse:
    """Models that were transformed, and what their record says afterwards."""

    @functools.cached_property
    def wide(self) -> nn.Module:
        torch.manual_seed(0)
        return sparsify.transform(MLP(), (torch.randn(4, 12),), sparsity=0.75, seed=3)

    def cut(self, model: nn.Module, fqn: str, rows=(), columns=()) -> None:
        owner = model.get_submodule(fqn)
        mask = owner.weight_mask.clone()
        mask[list(rows)] = False
        mask[:, list(columns)] = False
        set_mask(owner, "weight", mask)

    def test_units_cut_off_by_masks_go_and_masks_follow(self):
        model = self.wide
        width = model.get_submodule("inner.3").weight.shape[0]
        self.cut(model, "inner.3", rows=(4, 7), columns=(2,))
        model.get_submodule("inner.0").bias.data[2] = 1  # alive, but unread
        result = sparsify.narrow(model)
        removed = {g.id: g.removed for g in result.meta["narrowing"].groups if g.removed}
        assert removed == {"inner.0.weight[0]": (2,), "inner.3.weight[0]": (4, 7)}
        x = torch.randn(9, 12)
        torch.testing.assert_close(result.eval()(x), model.eval()(x))
        masks = masked_parameters(result)
        assert masks.keys() == masked_parameters(model).keys()
        assert masks["inner.3.weight"].mask.shape == (width - 2, width - 1)
        verify_masks(result)

    def test_gradients_stay_inside_the_masks(self):
        self.cut(self.wide, "inner.3", rows=(4, 7))
        result = sparsify.narrow(self.wide).train()
        result(torch.randn(9, 12)).square().sum().backward()
        entry = masked_parameters(result)["inner.3.weight"]
        assert entry.param.grad is not None and bool(entry.param.grad[entry.mask].any())
        assert not bool(entry.param.grad[~entry.mask].any())

    def test_the_plan_says_what_is_there_now(self):
        self.cut(self.wide, "inner.3", rows=(4, 7))
        result = sparsify.narrow(self.wide)
        before, after = self.wide.sparsify.plan, result.sparsify.plan
        assert after.flops.sparse == result.meta["narrowing"].flops[1] < before.flops.sparse
        assert after.flops.dense == before.flops.dense
        layers = {layer.fqn: layer for layer in after.layers}
        for name, entry in masked_parameters(result).items():
            layer = layers[name.removesuffix(".weight")]
            assert layer.shape == tuple(entry.param.shape)
            assert layer.nnz == int(entry.mask.sum())
            assert layer.density == pytest.approx(entry.density)
        widths = {group.id: group.width for group in after.groups}
        assert widths["inner.3.weight[0]"] == before.widths["inner.3.weight[0]"] - 2

    def test_scaling_has_the_realised_numbers(self):
        self.cut(self.wide, "inner.3", columns=range(8))
        result = sparsify.narrow(self.wide)
        old, new = self.wide.sparsify.scaling["inner.3.weight"], result.sparsify.scaling["inner.3.weight"]
        entry = masked_parameters(result)["inner.3.weight"]
        assert new.m_in == pytest.approx(entry.param.shape[1] / 32)
        given = masked_parameters(self.wide)["inner.3.weight"]
        assert new.m_rho == pytest.approx(old.m_rho * entry.density / given.density)
        assert new.m_in < old.m_in and new.m_rho > old.m_rho
        assert new.adam_lr == pytest.approx(old.adam_lr), "each output sums over as many weights as before"
        groups = sparsify.param_groups(result, lr=0.1)
        assert sum(len(group["params"]) for group in groups) == len(list(result.parameters()))

    def test_a_created_bias_has_a_learning_rate(self):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(4, 16), nn.Sigmoid(), nn.Linear(16, 16, bias=False), nn.Linear(16, 2))
        model = sparsify.transform(model, (torch.randn(2, 4),), family="masked", sparsity=0.5)
        model.get_submodule("0").weight.data[3] = 0
        result = sparsify.narrow(model)
        assert result.get_submodule("2").bias is not None
        assert result.sparsify.scaling["2.bias"].role == "bias"
        sparsify.param_groups(result, lr=0.1)

    def test_archive_and_onnx(self, tmp_path):
        self.cut(self.wide, "inner.3", rows=(4, 7), columns=(2,))
        result = sparsify.narrow(self.wide)
        sparsify.save(result, tmp_path / "small.pt2")
        loaded = sparsify.load(tmp_path / "small.pt2")
        x = torch.randn(9, 12)
        assert torch.equal(loaded(x), result.eval()(x))
        assert loaded.sparsify.plan == result.sparsify.plan
        assert loaded.sparsify.scaling == result.sparsify.scaling
        assert loaded.sparsify.parameter_map == result.sparsify.parameter_map
        report = sparsify.export(loaded, tmp_path / "small.onnx")
        assert report.max_abs_error < 1e-4
        assert not any(group.removed for group in sparsify.narrow(loaded).meta["narrowing"].groups)


@pytest.mark.parametrize("family", ["parallel", "factorized", "doped"])
def test_drop_in_families(family, tmp_path):
    torch.manual_seed(0)
    options = {"branch_nonlinearity": "relu"} if family == "parallel" else {}
    model = sparsify.transform(MLP(), (torch.randn(4, 12),), family=family, sparsity=0.75, **options)
    for name, parameter in model.named_parameters():
        if name.startswith("head") and name.endswith("weight"):
            parameter.data[:, 6] = 0
    result = sparsify.narrow(model)
    assert any(group.removed for group in result.meta["narrowing"].groups)
    x = torch.randn(9, 12)
    torch.testing.assert_close(result.eval()(x), model.eval()(x))
    sparsify.save(result, tmp_path / "small.pt2")
    torch.testing.assert_close(sparsify.load(tmp_path / "small.pt2")(x), model(x))


@pytest.mark.parametrize("seed", range(6))
def test_random_dead_units_keep_the_outputs(seed):
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)

    def pick(options):
        return options[int(torch.randint(len(options), (), generator=generator))]

    width, layers, channels = 10, [], 3
    for _ in range(3):
        padding = pick([0, 1])
        layers += [nn.Conv2d(channels, width, 3, padding=padding, bias=pick([True, False]))]
        layers += pick([[nn.BatchNorm2d(width)], [nn.InstanceNorm2d(width)], []])
        layers += [pick([nn.ReLU, nn.GELU, nn.Sigmoid, nn.Hardswish, nn.Identity])()]
        layers += pick([[], [nn.MaxPool2d(2, 1)], [nn.AvgPool2d(3, 1, 1)]])
        channels = width
    layers += [nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, 12), nn.GELU(), nn.Linear(12, 4)]
    case = Narrowing(nn.Sequential(*layers), torch.randn(2, 3, 12, 12))
    with torch.no_grad():
        for module in case.model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                rows, columns = module.weight.shape[:2]
                module.weight[torch.rand(rows, generator=generator) < 0.3] = 0
                module.weight[:, torch.rand(columns, generator=generator) < 0.2] = 0
            elif isinstance(module, nn.BatchNorm2d):
                module.bias.normal_(generator=generator)
                module.weight[torch.rand(width, generator=generator) < 0.3] = 0
                module.running_mean.normal_(generator=generator)
    case.narrow(tolerance=1e-3)
    assert case.removed
    torch.manual_seed(5)
    x = torch.randn(4, 3, 12, 12)
    torch.testing.assert_close(case.result.eval()(x), case.model(x), rtol=1e-3, atol=1e-5)
