"""Random numbers that depend on a seed and a name, never on the order in which tensors are drawn."""

from __future__ import annotations

import hashlib

import torch


def generator(seed: int, purpose: str, fqn: str, device: torch.device) -> torch.Generator:
    """Returns a generator of its own for one tensor and one purpose (`init`, `mask`)."""
    digest = hashlib.sha256(f"{seed}/{purpose}/{fqn}".encode()).digest()
    return torch.Generator(device=device).manual_seed(int.from_bytes(digest[:8], "little") >> 1)
