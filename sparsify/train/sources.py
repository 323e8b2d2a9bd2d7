"""The data SPECs, and what reads each: digits, Fashion-MNIST, NumPy archives and text."""

from __future__ import annotations

import gzip
import struct
import zipfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsify.errors import UserError
from sparsify.train.data import Arrays, Data, Windows, from_arrays, from_function, split

FASHION_MNIST = Path("/usr/share/datasets/fashion-mnist")
_TEXT_TEST_SHARE = 0.1
_IDX_DTYPES = {8: np.uint8, 9: np.int8, 11: np.int16, 12: np.int32, 13: np.float32, 14: np.float64}


def load_data(spec: str, *, sequence_length: int = 128) -> Data:
    """Reads the data that a SPEC names.

    Args:
        spec: `digits`, `fashion-mnist[:DIR]`, `npz:FILE`, `text:FILE_OR_DIR` or `package.module:function`.
        sequence_length: Bytes in a window of text.

    Raises:
        UserError: When the SPEC is unknown, or its files are missing or unreadable.
    """
    kind, _, rest = spec.partition(":")
    if spec == "digits":
        return digits()
    if kind == "fashion-mnist":
        return fashion_mnist(Path(rest) if rest else FASHION_MNIST)
    if kind == "npz" and rest:
        return npz(Path(rest))
    if kind == "text" and rest:
        return text(Path(rest), sequence_length)
    if kind and rest and all(part.isidentifier() for part in kind.split(".")) and rest.isidentifier():
        return from_function(spec)
    raise UserError(
        f"unknown data '{spec}'; known are digits, fashion-mnist[:DIR], npz:FILE, text:FILE_OR_DIR and "
        "package.module:function"
    )


def digits() -> Data:
    """scikit-learn's 1797 digits: float32 [N, 1, 8, 8], standardised; 25 % of each class for tests."""
    from sklearn.datasets import load_digits

    bunch = load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None]
    labels = torch.from_numpy(bunch.target).long()
    train, test = split(labels)
    return _standardised("digits", images[train], labels[train], images[test], labels[test])


def fashion_mnist(directory: Path) -> Data:
    """Fashion-MNIST from its four IDX files (plain or .gz): float32 [N, 1, 28, 28], standardised.

    Raises:
        UserError: When a file is missing or damaged.
    """
    parts = {}
    for name, stem in (
        ("x_train", "train-images-idx3-ubyte"),
        ("y_train", "train-labels-idx1-ubyte"),
        ("x_test", "t10k-images-idx3-ubyte"),
        ("y_test", "t10k-labels-idx1-ubyte"),
    ):
        found = [path for path in (directory / stem, directory / f"{stem}.gz") if path.is_file()]
        if not found:
            raise UserError(
                f"{directory / stem}.gz is missing: install Debian's package dataset-fashion-mnist "
                "(apt install dataset-fashion-mnist), or name the folder of the IDX files: fashion-mnist:DIR"
            )
        parts[name] = torch.from_numpy(read_idx(found[0]))
    x_train, x_test = parts["x_train"].float()[:, None], parts["x_test"].float()[:, None]
    return _standardised("fashion-mnist", x_train, parts["y_train"].long(), x_test, parts["y_test"].long())


def read_idx(path: Path) -> np.ndarray:
    """Reads an IDX file (Yann LeCun's format for MNIST), gzipped or not.

    Raises:
        UserError: When it is no IDX file, or its size does not fit its header.
    """
    try:
        raw = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
        _, code, dims = struct.unpack(">HBB", raw[:4])
        shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
        dtype = np.dtype(_IDX_DTYPES[code]).newbyteorder(">")
        array = np.frombuffer(raw, dtype, offset=4 + 4 * dims).reshape(shape)
    except (OSError, EOFError, struct.error, KeyError, ValueError) as error:
        raise UserError(f"{path} is not a readable IDX file: {error}") from error
    return array.astype(array.dtype.newbyteorder("="))


def npz(path: Path) -> Data:
    """Arrays of a NumPy archive: see `from_arrays` for their names. Pickled objects are not read.

    Raises:
        UserError: When the file is missing, damaged, or holds other names.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path} is not a readable .npz archive: {error}") from error
    return from_arrays(f"npz:{path}", arrays)


def text(path: Path, length: int) -> Data:
    """Bytes of a file, or of all text files below a folder in order of path; the last 10 % are for tests.

    Raises:
        UserError: When there is nothing to read, or too little for one window.
    """
    if path.is_dir():
        contents = [file.read_bytes() for file in sorted(path.rglob("*")) if file.is_file()]
        raw = b"\n".join(content for content in contents if b"\0" not in content)
    elif path.is_file():
        raw = path.read_bytes()
    else:
        raise UserError(f"there is no file or folder {path}")
    tokens = torch.frombuffer(bytearray(raw), dtype=torch.uint8) if raw else torch.empty(0, dtype=torch.uint8)
    border = tokens.numel() - max(length + 1, int(_TEXT_TEST_SHARE * tokens.numel()))
    if border <= length:
        raise UserError(f"{path} holds {tokens.numel()} bytes of text, too few for windows of {length}")
    return Data(
        f"text:{path}", "language", Windows(tokens[:border], length), Windows(tokens[border:], length)
    )


def _standardised(name: str, x_train: Tensor, y_train: Tensor, x_test: Tensor, y_test: Tensor) -> Data:
    mean, std = x_train.mean(), x_train.std()
    return Data(
        name,
        "classification",
        Arrays(((x_train - mean) / std,), y_train),
        Arrays(((x_test - mean) / std,), y_test),
    )
