"""Every role of a model, every optimizer, every family: factors against formulas over counted numbers.

Roles are written down by hand, sizes are counted on the given and the rewritten tensors, and densities on the
weights that are not zero; nothing of the package takes part in what is expected.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import sparsify
from sparsify.errors import UserError
from sparsify.scaling import param_groups


class Everything(nn.Module):
    """A model with every role: tokens beside pictures, positions as a free parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=4, bias=False)
        self.norm = nn.GroupNorm(4, 16)
        self.tokens, self.positions = nn.Embedding(7, 16), nn.Parameter(torch.randn(5, 16))
        self.up, self.down = nn.Linear(16, 48), nn.Linear(48, 16)
        self.last, self.head = nn.LayerNorm(16), nn.Linear(16, 3)

    def forward(self, picture: Tensor, tokens: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped(F.relu(self.depthwise(F.relu(self.stem(picture)))))))
        x = x.mean((2, 3))[:, None] + self.tokens(tokens) + self.positions
        x = x + self.down(F.gelu(self.up(x)))
        return self.head(self.last(x).mean(1))


MATRIX, TABLE, VECTOR, READOUT = "matrix", "table", "vector", "readout"
ROLES = {
    "stem.weight": ("input", MATRIX),
    "depthwise.weight": ("depthwise", MATRIX),
    "grouped.weight": ("grouped", MATRIX),
    "up.weight": ("hidden", MATRIX),
    "down.weight": ("hidden", MATRIX),
    "tokens.weight": ("embedding", TABLE),
    "positions": ("free", VECTOR),
    "norm.weight": ("norm", VECTOR),
    "norm.bias": ("norm", VECTOR),
    "last.weight": ("norm", VECTOR),
    "last.bias": ("norm", VECTOR),
    "head.weight": ("readout", READOUT),
    **{f"{layer}.bias": ("bias", VECTOR) for layer in ("stem", "depthwise", "up", "down", "head")},
}
EXAMPLE = (torch.zeros(2, 3, 6, 6), torch.zeros(2, 5, dtype=torch.long))


@dataclass(frozen=True)
class Row:
    variance: float
    adam: float
    sgd: float
    forward: float
    eps: float


def expected(kind: str, old: Tensor, new: Tensor, parameterization: str, gamma: float) -> Row:
    """A row of the reference's table from the tensors themselves."""
    if parameterization == "sp":
        return Row(1, 1, 1, 1, 1)
    if kind == VECTOR:
        grown = new.numel() / old.numel()
        return Row(1, 1, grown, 1, 1 / grown)
    if kind == TABLE:
        grown = new.shape[1] / old.shape[1]
        return Row(1, 1, grown, 1, 1 / grown)
    m_in = (new.numel() / new.shape[0]) / (old.numel() / old.shape[0])
    if kind == READOUT:
        return Row(1, 1, m_in, 1 / m_in, 1 / m_in)
    density = int(new.count_nonzero()) / new.numel()
    m = m_in * (density**gamma if parameterization == "supar" else 1.0)
    m_out = new.shape[0] / old.shape[0]
    return Row(1 / m, 1 / m, m_out / m, 1, 1 / m_out)


@pytest.fixture(scope="module")
def traced():
    torch.manual_seed(0)
    return sparsify.trace(Everything().eval(), EXAMPLE)


OPTIONS = {
    "wide": {"family": "wide", "sparsity": 0.75},
    "inner": {"family": "wide", "sparsity": 0.5, "scope": "inner"},
    "wide and as sparse as asked": {"family": "wide", "sparsity": 0.9, "width": 2.0},
    "masked": {"family": "masked", "sparsity": 0.9},
}


@pytest.mark.parametrize("parameterization", ["supar", "mup", "sp"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_every_tensor_follows_its_row(traced, options, parameterization):
    gamma = 0.7 if options["family"] == "masked" else 1.0
    model = sparsify.transform(traced, parameterization=parameterization, density_exponent=gamma, **options)
    given, made = dict(traced.module.named_parameters()), dict(model.named_parameters())
    assert {fqn: model.sparsify.scaling[fqn].role for fqn in made} == {
        fqn: role for fqn, (role, _) in ROLES.items()
    }
    lr, decay, eps = 0.5, 0.25, 1e-6
    rates = {
        name: {
            fqn: group
            for group in param_groups(model, lr=lr, optimizer=name, **more)
            for fqn in group["names"]
        }
        for name, more in (("adamw", {"weight_decay": decay, "eps": eps}), ("sgd", {"weight_decay": decay}))
    }
    sparse = set()
    for fqn, (_, kind) in ROLES.items():
        row = expected(kind, given[fqn], made[fqn].detach(), parameterization, gamma)
        scale = model.sparsify.scaling[fqn]
        assert (scale.init_std**2, scale.forward) == pytest.approx((row.variance, row.forward)), fqn
        adam, sgd = rates["adamw"][fqn], rates["sgd"][fqn]
        assert (adam["lr"], sgd["lr"]) == pytest.approx((lr * row.adam, lr * row.sgd)), fqn
        assert adam["lr"] * adam["weight_decay"] == pytest.approx(lr * decay), fqn
        assert sgd["lr"] * sgd["weight_decay"] == pytest.approx(lr * decay), fqn
        assert adam["eps"] == pytest.approx(eps * row.eps), fqn
        if kind == MATRIX and not made[fqn].all():
            sparse.add(fqn)
    assert sparse >= {"up.weight", "down.weight"}


FAMILIES = {"parallel": 0.75, "factorized": 0.75, "doped": 0.75}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_families_follow_their_lines_of_the_reference(family):
    torch.manual_seed(0)
    inner = nn.Sequential(
        nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 40), nn.ReLU(), nn.Linear(40, 16), nn.ReLU()
    )
    model = sparsify.transform(
        nn.Sequential(inner, nn.Linear(16, 4)),
        (torch.zeros(2, 16),),
        family=family,
        sparsity=FAMILIES[family],
    )
    scaling, made = model.sparsify.scaling, dict(model.named_parameters())
    n = 4
    found = {
        fqn: (s.init_std**2, s.adam_lr, s.sgd_lr)
        for fqn, s in scaling._by_fqn.items()
        if fqn.startswith("0.2")
    }
    close = {"rel": 0.03}  # counts are whole numbers
    if family == "parallel":
        mean = 1 / math.sqrt(2 * math.pi)
        c = math.sqrt(0.5 / (n * (0.5 - mean**2) + n**2 * mean**2))
        for branch in range(n):
            assert found[f"0.2.branches.{branch}.weight"] == pytest.approx((n, 1 / c, 1 / c**2), **close)
            assert scaling[f"0.2.branches.{branch}.weight"].forward == pytest.approx(c)
    elif family == "factorized":
        assert made["0.2.u.weight"].shape[0] == math.ceil(24 * 40 / (64 / n))
        assert found["0.2.u.weight"] == pytest.approx((n, n, n**2), **close)
        assert found["0.2.v.weight"] == pytest.approx((1, 1, 1), **close)
    else:
        weight = made["0.2.sparse.weight"]
        one = weight.numel() / int(weight.count_nonzero())
        assert found["0.2.sparse.weight"] == pytest.approx((one, one, one))
        assert found["0.2.u.weight"] == found["0.2.v.weight"] == pytest.approx((1, 1, 1))
        assert scaling["0.2.sparse.weight"].forward == pytest.approx(math.sqrt(0.5))


def gradients(model, width_of_batch=256):
    """Root mean square of the gradient over active entries, by parameter."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(width_of_batch, 24, generator=generator)
    F.cross_entropy(model(x), torch.arange(width_of_batch) % 6).backward()
    return {
        name: float(p.grad[p != 0].square().mean().sqrt()) for name, p in model.named_parameters() if p.any()
    }


def network(width):
    torch.manual_seed(0)
    sizes = (24, width, width, width)
    layers = [part for a, b in pairwise(sizes) for part in (nn.Linear(a, b), nn.ReLU())]
    return nn.Sequential(*layers, nn.Linear(width, 6))


def test_epsilon_shrinks_as_gradients_do():
    """Measured: a network of four times the width at a quarter of the density against its dense base."""
    base, wide = network(48), network(192)
    made = sparsify.transform(wide, (torch.zeros(2, 24),), base=base, family="masked", sparsity=0.75)
    before, after = gradients(base), gradients(made)
    compared = [name for name in after if name.endswith("weight")]
    assert len(compared) == 4
    for name in compared:
        assert after[name] / before[name] == pytest.approx(made.sparsify.scaling[name].adam_eps, rel=0.3), (
            name
        )


def test_rates_behind_batchnorm_are_corrected_on_request():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.Flatten(1))
    traced = sparsify.trace(nn.Sequential(model, nn.Linear(8 * 16, 4)), (torch.zeros(2, 1, 8, 8),))
    options = {"family": "masked", "sparsity": 0.75}
    off, on = (
        sparsify.transform(traced, lr_behind_batchnorm=flag, **options).sparsify.scaling["0.2.weight"]
        for flag in (False, True)
    )
    assert (off.init_std, off.adam_lr, off.sgd_lr) == pytest.approx((2, 1, 1))
    assert (on.init_std, on.adam_lr, on.sgd_lr) == pytest.approx((2, 4, 4))


def test_scaling_is_applied_once(traced):
    model = sparsify.transform(traced, family="masked", sparsity=0.5)
    first, second = (param_groups(model, lr=0.1) for _ in range(2))
    assert first == second
    with pytest.raises(UserError, match="masked model already"):
        sparsify.transform(model, EXAMPLE, family="masked", sparsity=0.5)
    with pytest.raises(UserError, match="made with parameterization 'supar'"):
        param_groups(model, lr=0.1, parameterization="mup")
