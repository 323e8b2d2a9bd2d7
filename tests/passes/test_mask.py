"""Masks of new and of kept weights, and of models that come pruned."""

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from sparsify.graph.trace import trace
from sparsify.masks.state import masked_parameters
from sparsify.passes import rewrite
from sparsify.planning import plan
from tests.passes.rewriting import Rewriting


def pruned():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5)).eval()
    prune.l1_unstructured(model[2], "weight", 0.5)
    prune.l1_unstructured(model[4], "weight", 0.5)
    return trace(model, (torch.randn(3, 20),))


def test_a_pruned_model_that_is_kept_keeps_the_masks_the_plan_leaves_alone():
    traced = pruned()
    result = rewrite(traced, plan(traced, family="masked", sparsity=0.8), init="preserve")
    masks = {fqn: entry.density for fqn, entry in masked_parameters(result).items()}
    assert masks == {"2.weight": pytest.approx(0.2, abs=1e-3), "4.weight": 0.5}


def test_a_pruned_model_that_is_drawn_anew_forgets_its_masks():
    traced = pruned()
    with pytest.warns(UserWarning, match="look trained"):
        result = rewrite(traced, plan(traced, sparsity=0.5))
    assert set(masked_parameters(result)) == {"2.weight"}
    assert set(result.sparsify.key_map) <= set(result.state_dict())


def test_random_masks_differ_between_layers_of_one_shape():
    case = Rewriting("bert").plan().rewrite()
    masks = [entry.mask for entry in masked_parameters(case.result).values()]
    pairs = [(a, b) for i, a in enumerate(masks) for b in masks[:i] if a.shape == b.shape]
    assert pairs and not any(torch.equal(a, b) for a, b in pairs)
