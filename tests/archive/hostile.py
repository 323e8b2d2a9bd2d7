"""Archives that would run code when they are loaded: each writes a marker file if it does."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from tests.models import MLP


class Payload:
    """Touches a file when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.marker,))


def pickled(marker: Path) -> bytes:
    return pickle.dumps(Payload(marker))


def torch_pickled(marker: Path) -> bytes:
    buffer = io.BytesIO()
    torch.save((Payload(marker),), buffer)
    return buffer.getvalue()


def archive(path: Path) -> Path:
    """A well-meaning archive of torch.export with a dynamic batch."""
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(MLP().eval(), (torch.randn(3, 12),), dynamic_shapes=shapes)
    torch.export.save(program, path)
    return path


Edit = Callable[[dict[str, bytes], Path], None]


def rewritten(source: Path, target: Path, edit: Edit, marker: Path) -> Path:
    """Copies an archive with some of its records changed, stored and aligned as torch does it."""
    with zipfile.ZipFile(source) as opened:
        root = opened.namelist()[0].partition("/")[0]
        records = {name.partition("/")[2]: opened.read(name) for name in opened.namelist()}
    edit(records, marker)
    writer = torch._C.PyTorchFileWriter(str(target))
    for name, content in records.items():
        if name not in (".data/version", ".data/serialization_id", "byteorder"):
            writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    assert root
    return target


def _program(records: dict[str, bytes], change: Callable[[dict[str, Any]], None]) -> None:
    program = json.loads(records["models/model.json"])
    change(program)
    records["models/model.json"] = json.dumps(program).encode()


def pickled_weight(records: dict[str, bytes], marker: Path) -> None:
    config = json.loads(records["data/weights/model_weights_config.json"])
    entry = next(iter(config["config"].values()))
    entry["use_pickle"] = True
    records["data/weights/" + entry["path_name"]] = torch_pickled(marker)
    records["data/weights/model_weights_config.json"] = json.dumps(config).encode()


def opaque_constant(records: dict[str, bytes], marker: Path) -> None:
    config = json.loads(records["data/constants/model_constants_config.json"])
    weights = json.loads(records["data/weights/model_weights_config.json"])["config"]
    tensor = dict(next(iter(weights.values()))["tensor_meta"], dtype=1, requires_grad=False)
    meta = {"path_name": "opaque_obj_0", "is_param": False, "use_pickle": False, "tensor_meta": tensor}
    config["config"]["evil"] = meta
    records["data/constants/opaque_obj_0"] = pickled(marker)
    records["data/constants/model_constants_config.json"] = json.dumps(config).encode()


def sample_inputs(records: dict[str, bytes], marker: Path) -> None:
    records["data/sample_inputs/model.pt"] = torch_pickled(marker)


def legacy_weights(records: dict[str, bytes], marker: Path) -> None:
    records["data/weights/model.pt"] = torch_pickled(marker)


def expression(records: dict[str, bytes], marker: Path) -> None:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch() or 2"
    text = records["models/model.json"].decode()
    start = text.index('"expr_str": "') + len('"expr_str": "')
    end = text.index('"', start)
    records["models/model.json"] = (text[:start] + code.replace('"', '\\"') + text[end:]).encode()


def range_symbol(records: dict[str, bytes], marker: Path) -> None:
    code = f"__import__('pathlib').Path({str(marker)!r}).touch()"
    _program(records, lambda p: p["range_constraints"].update({code: {"min_val": 0, "max_val": 9}}))


def operator(records: dict[str, bytes], marker: Path) -> None:
    _program(records, lambda p: p["graph_module"]["graph"]["nodes"][0].update(target="torch.os.system"))


def method_caller(records: dict[str, bytes], marker: Path) -> None:
    _program(
        records, lambda p: p["graph_module"]["graph"]["nodes"][0].update(target="_operator.methodcaller")
    )


def file_reader(records: dict[str, bytes], marker: Path) -> None:
    target = "torch.ops.aten.from_file.default"
    _program(records, lambda p: p["graph_module"]["graph"]["nodes"][0].update(target=target))


def enum_import(records: dict[str, bytes], marker: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        enum = json.dumps([{"__enum__": True, "fqn": "antigravity:x", "name": "y"}])
        spec = [1, {"type": "builtins.dict", "context": enum, "children_spec": []}]
        program["graph_module"]["module_call_graph"][0]["signature"]["out_spec"] = json.dumps(spec)

    _program(records, change)


def default_dict(records: dict[str, bytes], marker: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        context = {"default_factory_module": "antigravity", "default_factory_name": "x", "dict_context": []}
        spec = [1, {"type": "collections.defaultdict", "context": context, "children_spec": []}]
        program["graph_module"]["module_call_graph"][0]["signature"]["in_spec"] = json.dumps(spec)

    _program(records, change)


def quoted_name(records: dict[str, bytes], marker: Path) -> None:
    def change(program: dict[str, Any]) -> None:
        for spec in program["graph_module"]["signature"]["input_specs"]:
            if "parameter" in spec:
                spec["parameter"]["parameter_name"] = (
                    f'x"); __import__("pathlib").Path({str(marker)!r}).touch(); ("'
                )

    _program(records, change)


HOSTILE: dict[str, Edit] = {
    edit.__name__: edit
    for edit in (
        pickled_weight,
        opaque_constant,
        sample_inputs,
        legacy_weights,
        expression,
        range_symbol,
        operator,
        method_caller,
        file_reader,
        enum_import,
        default_dict,
        quoted_name,
    )
}
