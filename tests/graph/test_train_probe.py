"""The probe says what the second capture would say, or nothing; where it says something there is no other."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from sparsify.graph import trace as tracing
from sparsify.graph.example import Example
from sparsify.graph.train_probe import same_in_training


def probed(model: nn.Module, *args: torch.Tensor) -> object:
    example, _ = Example.of(model, args, None, None)
    return same_in_training(model, example)


def captured(model: nn.Module, *args: torch.Tensor) -> object:
    """What the second capture says."""
    example, asked = Example.of(model, args, None, None)
    program, example, shapes = tracing._capture(model, example, asked, True)
    return tracing._train_trace(model, program, example, shapes)


class Attention(nn.Module):
    def __init__(self, dropout: float) -> None:
        super().__init__()
        self.qkv, self.dropout = nn.Linear(8, 24), dropout

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = (part.unflatten(-1, (2, 4)).transpose(1, 2) for part in self.qkv(x).chunk(3, -1))
        p = self.dropout if self.training else 0.0
        return x + F.scaled_dot_product_attention(q, k, v, dropout_p=p).transpose(1, 2).flatten(2)


class Switched(nn.Module):
    """Dropout and BatchNorm switched by `training`, as the graph's own modules do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.dropout(self.norm(self.first(x)), 0.2, self.training)


class Noisy(Switched):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = super().forward(x)
        return x + torch.randn_like(x) if self.training else x


class Scaled(Switched):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) * (2.0 if self.training else 1.0)


class Reading(Switched):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if x.sum() > 0 else x


def test_attention_dropouts_are_found_by_path():
    model = nn.Sequential(Attention(0.1), Attention(0.0), Attention(0.3)).eval()
    x = torch.randn(2, 5, 8)
    found = probed(model, x)
    assert found == {"0.sdpa": {"attention_dropout": 0.1}, "2.sdpa": {"attention_dropout": 0.3}}
    assert captured(model, x) == (found, [])


def test_dropout_and_batch_normalisation_may_be_switched():
    model, x = Switched(), torch.randn(4, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    assert probed(model, x) == {}
    assert captured(model, x) == ({}, [])
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert model.training


@pytest.mark.parametrize("model", [Noisy(), Scaled(), Reading()])
def test_anything_else_is_left_to_the_capture(model):
    assert probed(model, torch.randn(4, 8)) is None


class Counting(Switched):
    def __init__(self) -> None:
        super().__init__()
        self.calls = torch.zeros(1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.calls.add_(1)
        return super().forward(x)


def test_no_tensor_of_the_users_changes():
    model = Counting()
    assert probed(model, torch.randn(4, 8)) is None
    assert model.calls == 0


def test_a_module_known_under_two_names_is_left_to_the_capture():
    model = nn.Sequential(Attention(0.1))
    model.again = model[0]
    assert probed(model, torch.randn(2, 5, 8)) is None


def test_a_language_model_is_captured_once(monkeypatch):
    captures = []
    export = torch.export.export
    monkeypatch.setattr(torch.export, "export", lambda *a, **k: captures.append(1) or export(*a, **k))
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "vocab_size": 50}
    model = LlamaForCausalLM(
        LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, attention_dropout=0.1)
    )
    traced = tracing.trace(model, (), {"input_ids": torch.zeros(2, 8, dtype=torch.long)})
    assert len(captures) == 1
    assert traced.train_record == {"model.layers.0.self_attn.sdpa": {"attention_dropout": 0.1}}
    assert not traced.refusals


class _DropsWhileTraining(nn.Module):
    def __init__(self, *probabilities: float) -> None:
        super().__init__()
        self.fc, self.probabilities = nn.Linear(4, 4), probabilities

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for p in self.probabilities:
            x = F.dropout(self.fc(x), p=p if self.training else 0.0, training=self.training)
        return x


def test_a_probability_given_in_training_mode_only_is_kept() -> None:
    traced = tracing.trace(nn.Sequential(_DropsWhileTraining(0.5)).eval(), (torch.ones(8, 4),))
    assert [m.p for m in traced.module.modules() if isinstance(m, nn.Dropout)] == [0.5]
    assert not traced.refusals
    traced.module.train()
    assert (traced.module(torch.ones(8, 4)) == 0).any()


def test_probabilities_that_cannot_be_told_apart_are_refused() -> None:
    traced = tracing.trace(nn.Sequential(_DropsWhileTraining(0.5, 0.1)).eval(), (torch.ones(8, 4),))
    assert [(one.fqn, one.rule) for one in traced.refusals] == [("0.dropout", "training-mode")]
    assert "0.1, 0.5" in traced.refusals[0].reason
