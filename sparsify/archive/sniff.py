"""What a file is, by its content."""

from __future__ import annotations

import enum
import json
import zipfile
from pathlib import Path

from sparsify.errors import UserError

_ZIP = b"PK\x03\x04"
_LONGEST_HEADER = 100_000_000


class Kind(enum.Enum):
    """Kinds of model file."""

    EXPORTED = "a torch.export archive"
    EXPORTED_OLD = "a torch.export archive in the layout of torch 2.5 and older"
    TORCHSCRIPT = "a TorchScript archive"
    AOTINDUCTOR = "an AOTInductor package"
    TORCH_ZIP = "a file of torch.save"
    PICKLE = "a pickle"
    SAFETENSORS = "a safetensors file"


def sniff(path: Path) -> Kind:
    """Tells what a file is; its name does not matter.

    Raises:
        UserError: When it cannot be read, or is none of the kinds.
    """
    try:
        with path.open("rb") as file:
            head = file.read(16)
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}") from error
    if not head:
        raise UserError(f"{path} is empty")
    if head.startswith(_ZIP):
        return _sniff_zip(path)
    if _is_safetensors(path, head):
        return Kind.SAFETENSORS
    if head[0] == 0x80 and head[1] in range(2, 6):
        return Kind.PICKLE
    onnx = " ONNX files are not loaded as models: use `sparsify lower` or `sparsify bench`." * (
        path.suffix == ".onnx"
    )
    raise UserError(
        f"{path} is no model file that can be read: neither .pt2, torch.save nor safetensors.{onnx}"
    )


def _sniff_zip(path: Path) -> Kind:
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise UserError(f"{path} is damaged or cut off: {error}") from error
    inner = {name.partition("/")[2] for name in names}
    if any(name.startswith("data/aotinductor/") for name in inner):
        return Kind.AOTINDUCTOR
    if "archive_format" in inner and any(name.startswith("models/") for name in inner):
        return Kind.EXPORTED
    if "serialized_exported_program.json" in names:
        return Kind.EXPORTED_OLD
    if "constants.pkl" in inner or any(name.startswith("code/") for name in inner):
        return Kind.TORCHSCRIPT
    if "data.pkl" in inner:
        return Kind.TORCH_ZIP
    raise UserError(f"{path} is a zip file, but holds no model")


def _is_safetensors(path: Path, head: bytes) -> bool:
    length = int.from_bytes(head[:8], "little")
    if head[8:9] != b"{" or not 2 <= length <= min(_LONGEST_HEADER, path.stat().st_size - 8):
        return False
    with path.open("rb") as file:
        file.seek(8)
        try:
            return isinstance(json.loads(file.read(length)), dict)
        except ValueError:
            return False
