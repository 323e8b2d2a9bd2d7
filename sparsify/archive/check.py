"""The check that every torch.export archive passes before torch.export reads it.

Reading an archive can run code: payloads that are pickles, sample inputs, symbolic expressions that sympy
evaluates, operator names that are looked up, enums of pytrees that are imported. Each is refused here
unless it is what an archive of tensors and ATen calls needs.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from sparsify.archive.consent import PickleConsentError
from sparsify.archive.expressions import check_expression
from sparsify.errors import UserError

_OPERATORS = (
    "add|sub|mul|floordiv|truediv|mod|pow|neg|pos|eq|ne|lt|le|gt|ge|and_|or_|not_|lshift|rshift|getitem|abs"
)
_TARGET = re.compile(
    r"torch\.ops\.aten\.(?P<aten>\w+)\.\w+"
    rf"|_operator\.({_OPERATORS})"
    r"|math\.(trunc|ceil|floor|sqrt)"
    r"|torch\.sym_\w+"
    r"|torch\.ops\.higher_order\.wrap_with_(set_grad_enabled|autocast)"
)
_READS_FILES = {"from_file", "save", "_save", "load", "_load"}
_CONTAINERS = {
    "builtins.tuple",
    "builtins.list",
    "builtins.dict",
    "collections.OrderedDict",
    "collections.namedtuple",
}
_NAMES = ("parameter_name", "buffer_name", "tensor_constant_name")


def check_archive(path: Path) -> set[str]:
    """Checks that an archive holds nothing that could run code when torch.export loads it.

    Returns:
        Names of the classes of transformers among its inputs and outputs.

    Raises:
        PickleConsentError: When it does; the message says what and where.
        UserError: When it cannot be read.
    """
    records = _Records(path)
    classes: set[str] = set()
    for name in records.names:
        if name.startswith("models/"):
            classes |= _check_program(name, records.json(name))
        elif name.endswith(("_weights_config.json", "_constants_config.json")):
            _check_payloads(name, records.json(name))
        elif name.endswith(".pt") and name.startswith(
            ("data/sample_inputs/", "data/weights/", "data/constants/")
        ):
            _check_tensors_only(name, records.bytes(name))
    return classes


class _Records:
    """Reads an archive with the reader that torch.export uses, so that both see the same records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            self._reader = torch._C.PyTorchFileReader(str(path))
            self.names: list[str] = list(self._reader.get_all_records())
        except RuntimeError as error:
            raise UserError(f"{path} is damaged or cut off: {_first_line(error)}") from error

    def bytes(self, name: str) -> bytes:
        try:
            return bytes(self._reader.get_record(name))
        except RuntimeError as error:
            raise UserError(f"{self.path} is damaged at {name}: {_first_line(error)}") from error

    def json(self, name: str) -> Any:
        try:
            return json.loads(self.bytes(name))
        except (ValueError, RecursionError) as error:
            raise UserError(f"{self.path} is damaged at {name}: {error}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _check_payloads(name: str, content: Any) -> None:
    for item in _dicts(content):
        if item.get("use_pickle"):
            raise PickleConsentError(f"{name} says that a tensor is stored as a pickle")
        if str(item.get("path_name", "")).startswith(("custom_obj_", "opaque_obj_")):
            raise PickleConsentError(f"{name} holds an object that is no tensor")
        _check_sizes(name, item)


def _check_tensors_only(name: str, content: bytes) -> None:
    if not content:
        return
    try:
        torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except Exception as error:
        raise PickleConsentError(f"{name} holds more than tensors ({_first_line(error)[:160]})") from error


def _check_program(name: str, content: Any) -> set[str]:
    classes: set[str] = set()
    for item in _dicts(content):
        if "target" in item and "inputs" in item:
            _check_target(name, item["target"])
        if "as_operator" in item:
            _check_target(name, item["as_operator"])
        if (
            item.get("as_custom_obj") is not None
            or "custom_obj_name" in item
            or item.get("custom_obj_values")
        ):
            raise PickleConsentError(f"{name} holds an object that is no tensor")
        for key in ("in_spec", "out_spec"):
            if item.get(key):
                classes |= _check_tree(name, item[key])
        for key in _NAMES:
            _check_name(name, item.get(key, ""))
        for symbol in item.get("range_constraints") or ():
            check_expression(name, symbol)
        _check_sizes(name, item)
    return classes


def _check_sizes(name: str, item: dict[str, Any]) -> None:
    if "expr_str" in item:
        check_expression(name, item["expr_str"])


def _check_target(name: str, target: Any) -> None:
    match = _TARGET.fullmatch(target) if isinstance(target, str) else None
    if match is None or match["aten"] in _READS_FILES:
        raise PickleConsentError(f"{name} calls {target!r}, which is no ATen operator or arithmetic")


def _check_name(name: str, path: Any) -> None:
    if not isinstance(path, str) or re.search(r"[\"'\\\r\n]", path):
        raise PickleConsentError(f"{name} names a tensor {path!r}, which no module can do")


def _check_tree(name: str, text: Any) -> set[str]:
    """A pytree of plain containers, or of outputs of transformers; nothing in it may ask for an import."""
    classes: set[str] = set()
    try:
        _, root = json.loads(text)
        for node in _dicts(root):
            kind = node.get("type")
            if kind is not None and kind not in _CONTAINERS:
                if not str(kind).startswith("transformers."):
                    raise PickleConsentError(f"{name} has inputs or outputs of type {kind!r}")
                classes.add(kind)
            context = node.get("context")
            if any("__enum__" in item for item in _dicts(json.loads(context) if context else None)):
                raise PickleConsentError(f"{name} has inputs or outputs with keys that must be imported")
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"the archive is damaged at {name}: its inputs or outputs cannot be read ({error})"
        ) from error
    return classes


def _dicts(content: Any) -> Iterator[dict[str, Any]]:
    waiting = [content]
    while waiting:
        item = waiting.pop()
        if isinstance(item, dict):
            yield item
            waiting.extend(item.values())
        elif isinstance(item, list):
            waiting.extend(item)
