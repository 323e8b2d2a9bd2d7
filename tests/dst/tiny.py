"""A small net with a convolution and linear layers, masked in any pattern, and the algorithms that fit it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn, optim

from sparsify import dst
from sparsify.masks import parse_pattern, set_mask

PATTERNS = ("unstructured", "fan-in", "2:4", "4x2")
STEPS = 24
EVERY = 3
DENSITIES = {"0.weight": 0.5, "4.weight": 0.25, "6.weight": 0.5}

OPTIMIZERS: dict[str, Callable[..., optim.Optimizer]] = {
    "sgd": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=1e-2),
    "adam": lambda p: optim.Adam(p, lr=0.01, weight_decay=1e-2, amsgrad=True),
    "adamw": lambda p: optim.AdamW(p, lr=0.01, weight_decay=0.1),
}

OPTIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "static": ("static", {}),
    "set": ("set", {"drop_fraction": 0.5}),
    "rigl": ("rigl", {"drop_fraction": 0.5, "window": 2}),
    "srigl": ("srigl", {"drop_fraction": 0.5, "gamma": 0.9, "window": 2}),
    "srigl-all-neurons": ("srigl", {"drop_fraction": 0.5, "ablation": False}),
    "sparse-momentum": ("sparse-momentum", {"window": 2}),
    "gmp": ("gmp", {"target": DENSITIES}),
}
"""Method and options by the name of the case."""

CASES = [
    (name, pattern)
    for name in OPTIONS
    for pattern in PATTERNS
    if not name.startswith("srigl") or pattern == "fan-in"
]


def net(name: str, pattern: str, seed: int = 0) -> nn.Sequential:
    """Masks at `DENSITIES` (all of them true for gmp), except on a linear layer in the middle."""
    torch.manual_seed(seed)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 3),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(8 * 4, 12),
        nn.Linear(12, 12),
        nn.Linear(12, 4),
    )
    kind, generator = parse_pattern(pattern), torch.Generator().manual_seed(seed)
    for fqn, density in DENSITIES.items():
        owner = model.get_submodule(fqn.removesuffix(".weight"))
        shape = owner.weight.shape
        mask = kind.random(shape, kind.count(shape, density), generator)
        set_mask(owner, "weight", torch.ones_like(mask) if name == "gmp" else mask)
    return model


def make(name: str, model: nn.Module, optimizer: optim.Optimizer, pattern: str, **more: Any) -> dst.Algorithm:
    method, options = OPTIONS[name]
    if name == "gmp" and pattern == "2:4":
        options = {"target": dict.fromkeys(DENSITIES, 0.5)}
    options = {**options, "pattern": pattern, **more}
    return dst.make(method, model, optimizer, total_steps=STEPS, update_every=EVERY, **options)


def train_step(
    model: nn.Module,
    optimizer: optim.Optimizer,
    generator: torch.Generator,
    micro_batches: int = 2,
    clip: float = 0.5,
) -> None:
    """A step with gradient accumulation and clipping, on random data."""
    optimizer.zero_grad()
    for _ in range(micro_batches):
        x = torch.randn(8, 4, 4, 4, generator=generator)
        loss = nn.functional.cross_entropy(model(x), torch.randint(4, (8,), generator=generator))
        (loss / micro_batches).backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
