from __future__ import annotations

import pytest
import torch
from safetensors import safe_open
from torch import nn, optim

from sparsify.errors import UserError
from sparsify.train import checkpoint


def test_a_tree_comes_back_bit_for_bit(tmp_path):
    whole = torch.randn(4, 6)
    state = {
        "numbers": [1, 0.1, None, True, "text", 1e-320],
        "nested": {
            "bool": torch.tensor([True, False]),
            "half": torch.randn(3).bfloat16(),
            "scalar": torch.tensor(7),
        },
        "view": whole[:, 1:3],
        "transposed": whole.T,
        "empty": torch.empty(0, 3),
    }
    checkpoint.write(tmp_path / "deep" / "a.safetensors", state)
    found = checkpoint.read(tmp_path / "deep" / "a.safetensors")
    assert found["numbers"] == state["numbers"]
    for name in ("view", "transposed", "empty"):
        assert torch.equal(found[name], state[name]) and found[name].dtype == state[name].dtype
    for name, tensor in state["nested"].items():
        assert torch.equal(found["nested"][name], tensor) and found["nested"][name].dtype == tensor.dtype


def test_a_failed_write_leaves_the_old_checkpoint(tmp_path, monkeypatch):
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, {"step": 1})
    monkeypatch.setattr(
        checkpoint.os, "fsync", lambda descriptor: (_ for _ in ()).throw(OSError("disk full"))
    )
    with pytest.raises(UserError, match=r"disk full.*--resume"):
        checkpoint.write(path, {"step": 2})
    assert checkpoint.read(path) == {"step": 1}


def test_damaged_and_foreign_files_are_refused(tmp_path):
    path = tmp_path / "last.safetensors"
    checkpoint.write(path, {"step": 1, "w": torch.randn(100)})
    content = path.read_bytes()
    for damaged in (b"", content[:50], content[:-10], b"x" * 200):
        path.write_bytes(damaged)
        with pytest.raises(UserError, match="cannot be read"):
            checkpoint.read(path)
    path.write_bytes(content.replace(b'"version":"1"', b'"version":"9"'))
    with pytest.raises(UserError, match="version 9"):
        checkpoint.read(path)


def test_tied_parameters_are_stored_once_and_restored(tmp_path):
    def tied():
        model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
        model[1].weight = model[0].weight
        return model

    model, other, path = tied(), tied(), tmp_path / "m.safetensors"
    checkpoint.write(path, {"model": checkpoint.model_state(model)})
    with safe_open(path, framework="pt") as file:
        assert len(list(file.keys())) == 3
    checkpoint.load_model_state(other, checkpoint.read(path)["model"], path)
    assert other[1].weight is other[0].weight
    assert torch.equal(other[0].weight, model[0].weight)
    with pytest.raises(UserError, match="written by another model"):
        checkpoint.load_model_state(nn.Linear(4, 4), checkpoint.read(path)["model"], path)


@pytest.mark.parametrize("kind", [optim.AdamW, optim.SGD, optim.NAdam])
def test_optimizer_state_survives(tmp_path, kind):
    model = nn.Linear(4, 4)
    options = {"momentum": 0.9} if kind is optim.SGD else {}
    first, second = (kind(model.parameters(), lr=0.1, **options) for _ in range(2))
    model(torch.randn(2, 4)).sum().backward()
    first.step()
    checkpoint.write(tmp_path / "o", {"optimizer": checkpoint.optimizer_state(first)})
    checkpoint.load_optimizer_state(second, checkpoint.read(tmp_path / "o")["optimizer"])
    for param in model.parameters():
        assert first.state[param].keys() == second.state[param].keys()
        for name, slot in first.state[param].items():
            assert torch.equal(torch.as_tensor(slot), torch.as_tensor(second.state[param][name]))
