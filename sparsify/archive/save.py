"""Writing: one `.pt2` archive with graph, tensors, masks and record; whole or not at all."""

from __future__ import annotations

import copy
import io
import json
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, cast

import torch
from torch import nn
from torch.export import ExportedProgram

from sparsify.archive.structure import to_plain
from sparsify.errors import UnsupportedModelError, UserError
from sparsify.graph.canonical import complete
from sparsify.graph.signature import signature_of
from sparsify.graph.train_mode import train_record
from sparsify.masks.model_pattern import check_patterns
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import verify_masks

RECORD_FILE = "sparsify.json"
VERSION = 1


def save(model: nn.Module, path: str | Path) -> None:
    """Writes a model to one `.pt2` archive that torch.export.load and `load` read; no pickle is in it.

    Plan, parameter map, scaling, masks and training behaviour are inside. The file appears whole or not at
    all.

    Args:
        model: From transform, load, or `archive.wrap(trace(...))`.
        path: File to write, or to replace.

    Raises:
        UserError: When the model is not one of ours, or the file cannot be written.
        SparsifyError: When a weight outside its mask is not zero, or a mask is not of the plan's pattern.
        UnsupportedModelError: When the graph was changed so that it cannot be exported any more.
    """
    if not isinstance(model, SparseGraphModule):
        raise UserError(
            f"save takes a model from sparsify.transform or sparsify.load, not "
            f"{type(model).__name__}; for another "
            "dense model use sparsify.archive.wrap(sparsify.trace(model, args))"
        )
    verify_masks(model)
    check_patterns(model)
    if any(tensor.device.type != "cpu" for tensor in model.state_dict().values()):
        model = copy.deepcopy(model).cpu()
    plain, classes = _with_plain_outputs(model)
    content = {
        "version": VERSION,
        "record": model.sparsify.to_json() | {"train_record": train_record(model)},
        "outputs": classes,
    }
    extra = json.dumps(content, allow_nan=False)
    program = _export(plain, model.sparsify)
    with replacing(Path(path)) as temporary:
        with _Sink(temporary, "w+b") as sink:
            torch.export.save(program, cast(IO[bytes], sink), extra_files={RECORD_FILE: extra})
        if sink.failure is not None:
            raise sink.failure


class _Sink(io.FileIO):
    """A file that remembers its first failure: torch's archive writer ends the process on one."""

    failure: OSError | None = None

    def write(self, data: Any) -> int:
        rest = memoryview(data).cast("B")
        size = len(rest)
        while len(rest) and self.failure is None:
            try:
                rest = rest[super().write(rest) :]
            except OSError as error:
                self.failure = error
        return size


def _with_plain_outputs(model: SparseGraphModule) -> tuple[torch.fx.GraphModule, list[dict[str, Any]]]:
    """The same modules under a graph that returns plain containers."""
    graph = copy.deepcopy(model.graph)
    signature = signature_of(model.graph)
    if signature.out_spec is None:
        raise UnsupportedModelError(
            "the graph does not say what it returns; was its code generator replaced?"
        )
    spec, classes = to_plain(signature.out_spec)
    graph.set_codegen(signature.returning(spec))
    plain = torch.fx.GraphModule(model, graph)
    complete(plain, model)
    return plain, classes


def _export(module: torch.fx.GraphModule, record: Any) -> ExportedProgram:
    args, kwargs = record.inputs.example()
    before = {child: child.training for child in module.modules()}
    module.eval()
    try:
        return torch.export.export(
            module, args, kwargs, dynamic_shapes=record.inputs.dynamic_shapes(), strict=False
        )
    except (RuntimeError, ValueError, TypeError) as error:
        raise UnsupportedModelError(
            f"the graph cannot be exported any more ({(str(error).splitlines() or [''])[0][:300]}); "
            "was it changed after transform?"
        ) from error
    finally:
        for child, training in before.items():
            child.training = training


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file beside `path` that takes its place at the end; on any failure it goes and `path`
    stays.

    Raises:
        UserError: When the file cannot be written.
    """
    temporary: Path | None = None
    try:
        if path.is_dir():
            raise UserError(f"{path} is a directory; name a file")
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.name}.", suffix=".pt2", dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        yield temporary
        _settle(temporary, path)
    except (OSError, RuntimeError) as error:
        raise UserError(f"cannot write {path}: {(str(error).splitlines() or [''])[0]}") from error
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def _settle(temporary: Path, path: Path) -> None:
    with temporary.open("rb") as file:
        os.fsync(file.fileno())
    mode = path.stat().st_mode & 0o777 if path.exists() else 0o666 & ~_umask()
    temporary.chmod(mode)
    temporary.replace(path)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
