from __future__ import annotations

import copy
import pickle

import pytest
import torch
from torch import fx, nn

from sparsify.errors import SparsifyError, UserError
from sparsify.masks import SparseGraphModule, masked_parameters, random_mask, set_mask


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(6, 6))
        self.fc = nn.Linear(6, 3)

    def forward(self, x):
        return self.fc(x @ self.scale)


def sparse_net() -> SparseGraphModule:
    torch.manual_seed(0)
    net = Net()
    graph_module = SparseGraphModule(net, fx.Tracer().trace(net))
    generator = torch.Generator().manual_seed(0)
    set_mask(graph_module, "scale", random_mask((6, 6), 9, generator))
    set_mask(graph_module.fc, "weight", random_mask((3, 6), 7, generator))
    graph_module.sparsify = {"plan": [1, 2]}
    return graph_module


@pytest.mark.parametrize("duplicate", [copy.deepcopy, copy.copy])
def test_copies_keep_record_masks_and_hooks(duplicate):
    model = sparse_net()
    copied = duplicate(model)
    assert isinstance(copied, SparseGraphModule)
    assert copied.sparsify == model.sparsify
    assert list(masked_parameters(copied)) == ["scale", "fc.weight"]
    x = torch.randn(4, 6)
    assert torch.equal(copied(x), model(x))
    copied(x).square().sum().backward()
    for entry in masked_parameters(copied).values():
        assert (entry.param.grad[~entry.mask] == 0).all()
        assert entry.param.grad.abs().sum() > 0


def test_a_deepcopy_is_independent_of_the_original():
    model = sparse_net()
    copied = copy.deepcopy(copy.deepcopy(model))
    assert copied.sparsify is not model.sparsify
    set_mask(model.fc, "weight", torch.ones(3, 6, dtype=torch.bool))
    assert int(copied.fc.get_buffer("weight_mask").sum()) == 7
    del model
    copied(torch.randn(4, 6)).square().sum().backward()
    assert (copied.fc.weight.grad[~copied.fc.get_buffer("weight_mask")] == 0).all()


def test_a_deepcopy_inside_another_module_is_masked_too():
    wrapped = copy.deepcopy(nn.Sequential(sparse_net()))
    wrapped(torch.randn(4, 6)).square().sum().backward()
    entries = masked_parameters(wrapped)
    assert list(entries) == ["0.scale", "0.fc.weight"]
    for entry in entries.values():
        assert (entry.param.grad[~entry.mask] == 0).all()


def test_a_module_without_record_says_so_and_pickle_is_refused():
    net = Net()
    model = SparseGraphModule(net, fx.Tracer().trace(net))
    with pytest.raises(SparsifyError, match="no record"):
        _ = model.sparsify
    with pytest.raises(UserError, match=r"sparsify\.save"):
        pickle.dumps(model)
