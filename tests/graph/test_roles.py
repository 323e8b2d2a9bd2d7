"""Roles of layers and residual flags."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from sparsify.graph.facts import Facts
from tests.graph.widening import facts_of, model_facts


def found_in(name: str) -> Facts:
    return model_facts(name)[1]


def roles_of(found: Facts) -> dict[str, str]:
    return {layer.fqn: layer.role for layer in found.layers}


@pytest.mark.parametrize(
    ("name", "input_layers", "readouts", "embeddings"),
    [
        ("mlp", {"inner.0"}, {"head"}, set()),
        ("resnet", {"stem"}, {"fc"}, set()),
        ("vit", {"vit.embeddings.patch_embeddings.projection"}, {"classifier"}, set()),
        ("gpt2", set(), {"lm_head"}, {"transformer.wte", "transformer.wpe"}),
        ("llama", set(), {"lm_head"}, {"model.embed_tokens"}),
    ],
)
def test_ends_of_models(name: str, input_layers: set[str], readouts: set[str], embeddings: set[str]) -> None:
    assigned = roles_of(found_in(name))
    assert {fqn for fqn, role in assigned.items() if role == "input"} == input_layers
    assert {fqn for fqn, role in assigned.items() if role == "readout"} == readouts
    assert {fqn for fqn, role in assigned.items() if role == "embedding"} == embeddings
    assert set(assigned.values()) <= {"input", "readout", "embedding", "hidden"}


def test_the_last_layer_of_a_residual_stream_is_no_readout() -> None:
    assigned = roles_of(found_in("bert"))
    assert assigned["encoder.layer.1.output.dense"] == "hidden"
    assert assigned["pooler.dense"] == "readout"


def test_grouped_and_depthwise_convolutions() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 1),
        nn.Conv2d(8, 8, 3, groups=8),
        nn.Conv2d(8, 8, 3, groups=4),
        nn.Flatten(),
        nn.Linear(8, 2),
    )
    _, found = facts_of(model, torch.randn(2, 3, 5, 5))
    assert list(roles_of(found).values()) == ["input", "depthwise", "grouped", "readout"]


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mlp", set()),
        ("resnet", {"stem.weight[0]", "layer2.conv2.weight[0]"}),
        ("gpt2", {"transformer.wte.weight[1]"}),
        ("llama", {"model.embed_tokens.weight[1]"}),
    ],
)
def test_residual_streams(name: str, expected: set[str]) -> None:
    assert {group.id for group in found_in(name).groups if group.residual} == expected


def test_a_gate_and_a_spelled_out_activation_are_no_residual() -> None:
    class Gated(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Linear(3, 8), nn.Linear(3, 8), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            return self.c((y + 0.1 * y**3) * self.b(x))

    _, found = facts_of(Gated(), torch.randn(2, 3))
    assert not any(group.residual for group in found.groups)


def test_batch_norm_is_seen_behind_its_layer() -> None:
    follows = {layer.fqn: layer.batchnorm_follows for layer in found_in("resnet").layers}
    assert follows.pop("fc") is False
    assert all(follows.values())
