"""Changing masks under the full density correction: one warning that says what to do."""

from __future__ import annotations

import warnings

import pytest
import torch
from torch import nn

import sparsify


def made(**options):
    torch.manual_seed(0)
    layers = nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 4)
    return sparsify.transform(
        nn.Sequential(*layers), (torch.zeros(2, 8),), family="masked", sparsity=0.5, **options
    )


def started(model, algorithm):
    optimizer = torch.optim.AdamW(sparsify.param_groups(model, lr=0.1))
    return algorithm(model, optimizer, total_steps=10, update_every=2)


def test_a_changing_topology_under_the_full_correction_warns_once():
    with pytest.warns(UserWarning, match="density exponent below 1") as caught:
        started(made(), sparsify.dst.RigL)
    assert len(caught) == 1 and "RigL" in str(caught[0].message)


@pytest.mark.parametrize("options", [{"density_exponent": 0.5}, {"parameterization": "mup"}])
def test_a_softer_correction_or_none_does_not(options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started(made(**options), sparsify.dst.RigL)


def test_static_masks_do_not():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        started(made(), sparsify.dst.Static)
