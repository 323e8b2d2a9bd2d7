"""From zero groups to a smaller, faster file: WGSEF, narrow, ONNX; and the same road for ablated neurons."""

from __future__ import annotations

import numpy as np
import onnxruntime
import torch
from torch import Tensor, nn, optim

import sparsify
from sparsify import dst
from sparsify.archive import wrap
from sparsify.masks import masked_parameters, set_mask

IMAGES = torch.zeros(4, 1, 8, 8)


def trained(model: nn.Module, optimizer: optim.Optimizer, steps: int) -> None:
    model.train()
    for step in range(steps):
        x = torch.randn(16, 1, 8, 8, generator=torch.Generator().manual_seed(step))
        target = (x.mean((1, 2, 3)) * 30).round().clamp(-4, 5).long() + 4
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), target).backward()
        optimizer.step()
    model.eval()


def run_onnx(path: object, x: Tensor) -> np.ndarray:
    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: x.numpy()})[0]


def net() -> nn.Sequential:
    """Two convolutions with batch norm; the second pads with zeros."""
    torch.manual_seed(0)
    convolutions = [nn.Conv2d(1, 16, 3), nn.BatchNorm2d(16), nn.ReLU()]
    convolutions += [nn.Conv2d(16, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10))


def test_what_is_left_is_smaller_and_computes_the_same_in_plain_onnx_runtime(tmp_path):
    model = wrap(sparsify.trace(net(), (IMAGES,)))
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    running = dst.WGSEF(model, optimizer, groups="filters", keep=0.5, scope="layer", total_steps=30)
    trained(model, optimizer, 30)
    assert running.phase == "masked"
    sparsify.save(model, tmp_path / "wide.pt2")
    model = sparsify.load(tmp_path / "wide.pt2").eval()
    narrowed = sparsify.narrow(model)
    found = narrowed.meta["narrowing"]
    assert sum(len(group.removed) for group in found.groups) == 16
    assert {one.id: one.count for one in running.groups.sets} == {
        group.id: group.size for group in found.groups
    }
    dense = sparsify.narrow(net(), (IMAGES,)).meta["narrowing"]
    assert found.flops[1] < 0.4 * dense.flops[0]
    assert found.parameters[1] < 0.4 * dense.parameters[0]
    report = sparsify.export(narrowed, tmp_path / "narrow.onnx", dense=True)
    whole = sparsify.export(model, tmp_path / "wide.onnx", dense=True)
    assert report.bytes < 0.6 * whole.bytes
    x = torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        expected = model(x)
    for name in ("narrow", "wide"):
        outputs = torch.from_numpy(run_onnx(tmp_path / f"{name}.onnx", x))
        torch.testing.assert_close(outputs, expected, atol=1e-4, rtol=1e-4)
    assert float(expected.std()) > 0.01


def taken_out(narrowed: nn.Module) -> dict[str, tuple[int, ...]]:
    return {group.id: group.removed for group in narrowed.meta["narrowing"].groups}


def ablated() -> tuple[nn.Sequential, optim.Optimizer]:
    """A model of whose first convolution every second filter has lost all its weights."""
    model = net()
    model[1].bias.data.uniform_(0.5, 1)
    mask = torch.ones_like(model[0].weight, dtype=torch.bool)
    mask[::2] = False
    set_mask(model[0], "weight", mask)
    optimizer = optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    trained(model, optimizer, 3)
    return model, optimizer


def test_ablated_filters_leave_once_they_are_silent():
    """Their norms still emit a constant, which the padding of the next convolution keeps from its bias."""
    model, optimizer = ablated()
    size = model[0].out_channels
    removed = {
        group.id: group.removed for group in sparsify.narrow(model, (IMAGES,)).meta["narrowing"].groups
    }
    assert removed["0.weight[0]"] == ()
    assert dst.silence_idle_units(model, optimizer, example=IMAGES) == size // 2
    assert dst.silence_idle_units(model, optimizer, example=IMAGES) == 0
    trained(model, optimizer, 3)
    assert (model[1].bias[::2] == 0).all()
    assert (model[1].bias[1::2] != 0).all()
    removed = {
        group.id: group.removed for group in sparsify.narrow(model, (IMAGES,)).meta["narrowing"].groups
    }
    assert removed["0.weight[0]"] == tuple(range(0, size, 2))
    assert sum(len(units) for units in removed.values()) == size // 2


def test_neurons_that_srigl_ablates_leave_with_their_constants_in_the_next_bias():
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 3))
    x = torch.randn(64, 16)
    model = sparsify.transform(
        dense,
        (x[:2],),
        family="masked",
        sparsity=0.9,
        pattern="fan-in",
        only=["0", "2"],
        parameterization="sp",
    )
    optimizer = optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    dst.SRigL(model, optimizer, total_steps=80, update_every=5, gamma=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x), (x[:, 0] > 0).long() + (x[:, 1] > 0).long()).backward()
        optimizer.step()
    idle = {
        fqn: int((~entry.mask.any(1)).sum())
        for fqn, entry in masked_parameters(model).items()
        if entry.param.ndim == 2
    }
    assert sum(idle.values()) > 3
    narrowed = sparsify.narrow(model.eval())
    removed = taken_out(narrowed)
    assert len(removed["0.weight[0]"]) >= idle["0.weight"]
    assert len(removed["2.weight[0]"]) >= idle["2.weight"]
    with torch.no_grad():
        torch.testing.assert_close(narrowed(x), model(x), atol=1e-5, rtol=1e-5)
