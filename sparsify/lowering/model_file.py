"""Reads and writes ONNX files: errors that say what to do, nothing of the user's overwritten half."""

from __future__ import annotations

import glob
import hashlib
import math
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError  # type: ignore[import-untyped]
from onnx import TensorProto, numpy_helper

from sparsify.errors import UserError
from sparsify.lowering.graph import STANDARD
from sparsify.lowering.integrity import ITEM_BYTES, check_model, in_order, stored_tensors

EXTERNAL_ABOVE = 2**31 - 2**20
"""Bytes of constants above which they go to a file of their own; a protobuf ends at 2³¹ − 1."""

_KEEP_INLINE = 1024
_HOIST_ABOVE = 1 << 16
_ALIGN = ((1 << 20, 1 << 16), (1 << 14, 1 << 12), (0, 64))
"""Boundaries that tensors of so many bytes start on: what a system maps, a page, a cache line."""

_INITIALIZERS_STAND_ALONE = 4  # IR version from which an initializer need not be a graph input


def read_model(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file with its external data.

    Its nodes come in an order that runs, and large Constant nodes as initializers.

    Raises:
        UserError: No such file, not ONNX, damaged, or external data that is missing.
    """
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the path of an ONNX file")
    try:
        model = onnx.load(path, load_external_data=False)
    except (DecodeError, RuntimeError, ValueError) as error:
        raise UserError(f"{path}: cannot be read as an ONNX model: {_hint(path)} ({error})") from error
    if not model.ir_version or not model.graph.node:
        raise UserError(f"{path}: holds no ONNX graph; it is damaged or not ONNX")
    try:
        onnx.external_data_helper.load_external_data_for_model(model, str(path.parent))
    except (onnx.checker.ValidationError, OSError, ValueError) as error:
        raise UserError(
            f"{path}: its external data cannot be read ({error}); "
            "put the data file beside the model under the name that the model refers to"
        ) from error
    check_model(model, str(path))
    in_order(model.graph, str(path))
    _hoist_constants(model)
    return model


def _hint(path: Path) -> str:
    with path.open("rb") as stream:
        start = stream.read(40)
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with `git lfs pull`"
    if path.stat().st_size >= 2**31:
        return "one file holds at most 2 GB; save the model with external data"
    return "it is damaged or not ONNX"


def _hoist_constants(model: onnx.ModelProto) -> None:
    """Makes initializers of large Constant nodes: only those can move out, and inference stays light."""
    if model.ir_version < _INITIALIZERS_STAND_ALONE:
        return
    kept = []
    for node in model.graph.node:
        tensor = node.attribute[0].t if node.op_type == "Constant" and len(node.attribute) == 1 else None
        if tensor is None or _bytes(tensor) <= _HOIST_ABOVE or node.domain not in STANDARD:
            kept.append(node)
        else:
            model.graph.initializer.append(tensor)
            model.graph.initializer[-1].name = node.output[0]
    if len(kept) < len(model.graph.node):
        copies = onnx.GraphProto(node=kept)
        del model.graph.node[:]
        model.graph.node.extend(copies.node)


@contextmanager
def staged(model: onnx.ModelProto, path: Path, *, external_data: bool = False) -> Iterator[Path]:
    """Writes a model beside `path`, yields that file for checking, and renames it when all is well.

    Constants of more than `EXTERNAL_ABOVE` bytes go to `<stem>-<hash>.data` first.

    Args:
        model: Changed in place when its constants move out.
        path: Where the model is to appear, whole or not at all.
        external_data: Whether constants go there however few they are.

    Raises:
        UserError: The directory is missing or cannot be written, or the model is too large for the format.
    """
    beside = path.with_name(f".{path.stem}.{os.getpid()}.partial.onnx")
    older = _data_beside(path)
    data: Path | None = None
    try:
        try:
            if external_data or _constant_bytes(model) > EXTERNAL_ABOVE:
                data = _move_constants_out(model, path)
            beside.write_bytes(model.SerializeToString())
        except OSError as error:
            raise UserError(f"{path}: cannot be written: {error}") from error
        except (EncodeError, ValueError) as error:
            raise UserError(
                f"{path}: even without its constants the model exceeds the 2 GB of one file ({error})"
            ) from error
        yield beside
        beside.replace(path)
    except BaseException:
        if data is not None and data not in older:
            data.unlink(missing_ok=True)
        raise
    finally:
        beside.unlink(missing_ok=True)


def stored_bytes(path: Path, data: Iterable[str]) -> int:
    """Size of a model file and of its `data_files`."""
    return path.stat().st_size + sum((path.parent / name).stat().st_size for name in data)


def publish(path: Path, target: Path) -> None:
    """Moves a finished model to its place, external data first.

    Args:
        path: A model that `staged` wrote, on the same file system.
        target: Where it is to appear.
    """
    for name in data_files(path):
        (path.parent / name).replace(target.parent / name)
    path.replace(target)


def data_files(path: Path) -> tuple[str, ...]:
    """Names of the external data of a model that `staged` wrote, as seen from its folder."""
    if not _data_beside(path):  # most models: a file of gigabytes is not read for that
        return ()
    model = onnx.load(path, load_external_data=False)
    names = {
        entry.value
        for tensor in stored_tensors(model)
        for entry in tensor.external_data
        if entry.key == "location"
    }
    return tuple(sorted(names))


def _data_beside(path: Path) -> set[Path]:
    """Files that are named as this model's external data would be."""
    return set(path.parent.glob(f"{glob.escape(path.stem)}-*.data")) if path.parent.is_dir() else set()


def _bytes(tensor: TensorProto) -> int:
    return int(math.prod(tensor.dims)) * ITEM_BYTES.get(tensor.data_type, 1)


def _constant_bytes(model: onnx.ModelProto) -> int:
    return sum(map(_bytes, stored_tensors(model)))


def _content(tensor: TensorProto) -> bytes:
    """Bytes of a tensor as external data holds them; none for strings, which it cannot hold."""
    if tensor.data_type == TensorProto.STRING:
        return b""
    if tensor.HasField("raw_data"):
        return bytes(tensor.raw_data)
    return bytes(numpy_helper.from_array(numpy_helper.to_array(tensor)).raw_data)


def _padding(at: int, size: int) -> bytes:
    """Zeros that bring a tensor of `size` bytes from position `at` to its boundary."""
    return b"\0" * (-at % next(boundary for least, boundary in _ALIGN if size >= least))


def _move_constants_out(model: onnx.ModelProto, path: Path) -> Path | None:
    """Writes the data file and makes the constants refer to it; None where all are too small to move."""
    partial = path.with_name(f".{path.stem}.{os.getpid()}.partial.data")
    digest = hashlib.sha256()
    moved: list[tuple[TensorProto, int, int]] = []
    try:
        with partial.open("wb") as stream:
            for tensor in stored_tensors(model):
                content = _content(tensor)
                if len(content) < _KEEP_INLINE:
                    continue
                for piece in (_padding(stream.tell(), len(content)), content):
                    digest.update(piece)
                    stream.write(piece)
                moved.append((tensor, stream.tell() - len(content), len(content)))
        if not moved:
            return None
        data = path.with_name(f"{path.stem}-{digest.hexdigest()[:16]}.data")
        partial.replace(data)
    finally:
        partial.unlink(missing_ok=True)
    for tensor, offset, length in moved:
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        for key, value in (("location", data.name), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(value))
    return data
