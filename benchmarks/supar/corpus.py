"""Bytes of Python's standard library sources, split by file into training and validation text."""

from __future__ import annotations

import hashlib
import sysconfig
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

_LEFT_OUT = {"site-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
_VALIDATION_SHARE = 0.1


@dataclass(frozen=True)
class Corpus:
    """Two texts that share no file.

    Attributes:
        train: Bytes, uint8 [N].
        validation: Bytes, uint8 [M].
        digest: First 12 digits of the SHA-256 of all of it; the same digest means the same text.
    """

    train: Tensor
    validation: Tensor
    digest: str


@lru_cache(maxsize=1)
def corpus() -> Corpus:
    """Reads the sources of the running interpreter; a file's place is decided by a hash of its path."""
    root = Path(sysconfig.get_paths()["stdlib"])
    parts: dict[bool, list[bytes]] = {True: [], False: []}
    digest = hashlib.sha256()
    for file in sorted(root.rglob("*.py")):
        path = file.relative_to(root)
        if _LEFT_OUT & set(path.parts):
            continue
        content = file.read_bytes()
        mark = hashlib.sha256(path.as_posix().encode()).digest()
        parts[int.from_bytes(mark[:4], "big") < _VALIDATION_SHARE * 2**32].append(content)
        digest.update(mark + content)
    return Corpus(_tokens(parts[False]), _tokens(parts[True]), digest.hexdigest()[:12])


def _tokens(contents: list[bytes]) -> Tensor:
    return torch.frombuffer(bytearray(b"\n".join(contents)), dtype=torch.uint8)


def windows(text: Tensor, count: int, length: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Draws `count` windows: inputs and the bytes that follow each, both int64 [count, length]."""
    starts = torch.randint(0, text.numel() - length, (count,), generator=generator)
    picked = text[starts[:, None] + torch.arange(length + 1)].long()
    return picked[:, :-1], picked[:, 1:]
