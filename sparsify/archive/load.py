"""Reading: any model file, sniffed by content, into an nn.Module."""

from __future__ import annotations

import contextlib
import importlib
import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.export import ExportedProgram
from torch.export.pt2_archive._package import load_pt2

from sparsify.archive.check import check_archive
from sparsify.archive.save import RECORD_FILE, VERSION
from sparsify.archive.sniff import Kind, sniff
from sparsify.archive.structure import restore
from sparsify.archive.weights import load_pickle, load_safetensors
from sparsify.errors import Refusal, UnsupportedModelError, UserError
from sparsify.graph.canonical import Canonical, canonicalise, complete
from sparsify.graph.signature import signature_of
from sparsify.graph.traced import Traced
from sparsify.graph.train_mode import train_record
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import attach_hooks, verify_masks
from sparsify.passes.record import Record

_REFUSED = {
    Kind.TORCHSCRIPT: "TorchScript cannot be rewritten; save the nn.Module itself, or torch.export it",
    Kind.AOTINDUCTOR: "it holds compiled code and no graph; load the .pt2 that it was compiled from",
    Kind.EXPORTED_OLD: "load it with the torch that wrote it and save it with a newer one",
}


def load(
    path: str | Path, *, trust_pickle: bool = False, factory: str | Callable[[], nn.Module] | None = None
) -> nn.Module:
    """Loads a model from any file that holds one; content decides, not the name.

    Args:
        path: A `.pt2` archive (ours or torch.export's), a pickled nn.Module, or a state_dict or safetensors.
        trust_pickle: Let the file run code. Never needed for archives of `save`, state_dicts and safetensors.
        factory: Makes the model for a state_dict, a callable or `package.module:callable`.

    Returns:
        For archives a SparseGraphModule in eval mode, with its record, masks and hooks; otherwise the module.

    Raises:
        PickleConsentError: When the file would run code and `trust_pickle` is not set.
        UserError: When the file is damaged, of an unsupported kind, or does not fit the factory.
        UnsupportedModelError: When an archive's graph cannot be brought into canonical form.
    """
    path = Path(path)
    kind = sniff(path)
    if kind in _REFUSED:
        raise UserError(f"{path} is {kind.value}: {_REFUSED[kind]}")
    if kind is Kind.SAFETENSORS:
        return load_safetensors(path, factory)
    if kind is not Kind.EXPORTED:
        return load_pickle(path, trust_pickle=trust_pickle, factory=factory)
    if not trust_pickle:
        _register_outputs(check_archive(path))
    program, extra = _read(path)
    text = extra.get(RECORD_FILE)
    return _foreign(path, program) if text is None else _ours(path, program, text)


def _register_outputs(classes: set[str]) -> None:
    """Imports the transformers modules whose output classes an archive names; they register themselves."""
    for name in classes:
        with contextlib.suppress(ImportError):
            importlib.import_module(name.rpartition(".")[0])


def _read(path: Path) -> tuple[ExportedProgram, dict[str, str]]:
    try:
        with path.open("rb") as file, warnings.catch_warnings():
            warnings.simplefilter("ignore")
            contents = load_pt2(file)
    except Exception as error:
        said = (str(error).splitlines() or [type(error).__name__])[0][:300]
        raise UserError(
            f"{path} cannot be read by torch {torch.__version__}: {said}. It is damaged, or was "
            f"written by another "
            "version of torch, or returns classes of a package that is not imported"
        ) from error
    programs = contents.exported_programs
    if len(programs) != 1 and "model" not in programs:
        raise UserError(
            f"{path} holds {len(programs)} models ({', '.join(sorted(programs)) or 'none'}); one is needed"
        )
    program = programs.get("model") or next(iter(programs.values()))
    # Guards are Python source from the file; the canonical form has no use for them.
    program._guards_code = []
    return program, dict(contents.extra_files)


def _ours(path: Path, program: ExportedProgram, text: str) -> SparseGraphModule:
    try:
        content = json.loads(text)
        version, outputs = content["version"], content["outputs"]
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is damaged: its record cannot be read ({error})") from error
    if version != VERSION:
        raise UserError(f"{path} has format {version!r}; this version of sparsify reads {VERSION}")
    record = Record.from_json(content["record"])
    canonical = canonicalise(program, train_record=record.train_record)
    _restore_outputs(canonical, outputs)
    module = _assembled(canonical)
    module.sparsify = record
    verify_masks(module)
    return module


def _foreign(path: Path, program: ExportedProgram) -> SparseGraphModule:
    canonical = canonicalise(program)
    module = _assembled(canonical)
    refusals: tuple[Refusal, ...] = ()
    if not program.range_constraints:
        warnings.warn(f"{path} was exported with fixed input shapes, and keeps them", stacklevel=3)
    traced = Traced(
        module=module,
        args=(),
        kwargs={},
        dynamic=None,
        key_map=canonical.key_map,
        ties=canonical.ties,
        train_record=train_record(module),
        refusals=refusals,
    )
    module.sparsify = Record.of_dense(traced)
    return module


def _assembled(canonical: Canonical) -> SparseGraphModule:
    module = SparseGraphModule(canonical.module, canonical.module.graph)
    complete(module, canonical.module)
    attach_hooks(module)
    return module.eval()


def _restore_outputs(canonical: Canonical, outputs: Any) -> None:
    graph = canonical.module.graph
    signature = signature_of(graph)
    if not isinstance(outputs, list) or signature.out_spec is None:
        raise UnsupportedModelError("the archive does not say what the model returns")
    graph.set_codegen(signature.returning(restore(signature.out_spec, outputs)))
