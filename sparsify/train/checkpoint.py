"""Checkpoints: one safetensors file each, with what is not a tensor as JSON inside.

A checkpoint is a tree of dicts, lists, JSON scalars and tensors. Nothing in it is pickled. It is written
beside and renamed: a process killed while writing leaves the previous consistent state in place.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn, optim

from sparsify.errors import UserError
from sparsify.masks import set_mask
from sparsify.masks.state import SUFFIX

VERSION = 1
_TENSOR = "__tensor__"


def write(path: Path, state: Mapping[str, Any]) -> None:
    """Writes a checkpoint so that `path` holds either the old state or the new one, whatever happens.

    Raises:
        UserError: When the file cannot be written; the one before it stays.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors: dict[str, Tensor] = {}
    tree = _take_tensors(dict(state), "", tensors)
    temporary = path.with_name(path.name + ".tmp")
    try:
        save_file(tensors, temporary, metadata={"version": str(VERSION), "state": json.dumps(tree)})
        with temporary.open("rb+") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except (SafetensorError, OSError) as error:
        temporary.unlink(missing_ok=True)
        raise UserError(
            f"checkpoint {path} cannot be written: {error}; make room, then go on with --resume"
        ) from error
    _sync_folder(path.parent)


def read(path: Path) -> dict[str, Any]:
    """Reads what `write` wrote; tensors come back on the CPU.

    Raises:
        UserError: When the file is damaged or of another version.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            if metadata.get("version") != str(VERSION):
                raise UserError(f"checkpoint {path} is of version {metadata.get('version')}, not {VERSION}")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        tree = _put_tensors(json.loads(metadata["state"]), tensors)
    except (SafetensorError, OSError, KeyError, ValueError) as error:
        raise UserError(f"checkpoint {path} cannot be read: {error}; start again without --resume") from error
    return dict(tree)


def model_state(model: nn.Module) -> dict[str, Tensor]:
    """Parameters and buffers by name, tied ones once."""
    return {**dict(model.named_parameters()), **dict(model.named_buffers())}


def load_model_state(model: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Copies parameters and buffers (masks among them) into a model, in place.

    Masks that the run gave to a model that started without are set anew.

    Raises:
        UserError: When the model's names or shapes differ.
    """
    own = model_state(model)
    for name, tensor in state.items():
        parameter = name.removesuffix(SUFFIX)
        if name not in own and parameter != name and parameter in own and tensor.dtype == torch.bool:
            owner, _, leaf = parameter.rpartition(".")
            set_mask(model.get_submodule(owner), leaf, tensor.to(own[parameter].device))
    own = model_state(model)
    differing = [
        name
        for name in sorted(own.keys() | state.keys())
        if name not in own or name not in state or own[name].shape != state[name].shape
    ]
    if differing:
        raise UserError(
            f"checkpoint {path} was written by another model: {differing[0]} and {len(differing) - 1} more "
            "differ; resume with the model that the run was started with"
        )
    with torch.no_grad():
        for name, tensor in state.items():
            own[name].copy_(tensor)


def optimizer_state(optimizer: optim.Optimizer) -> dict[str, Any]:
    """The slots of an optimizer by parameter number; learning rates follow from the step."""
    return {str(number): dict(slots) for number, slots in optimizer.state_dict()["state"].items()}


def load_optimizer_state(optimizer: optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Takes up what `optimizer_state` returned."""
    whole = optimizer.state_dict()
    whole["state"] = {int(number): slots for number, slots in state.items()}
    optimizer.load_state_dict(whole)


def random_state() -> dict[str, Any]:
    """The state of torch's generators."""
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {"cpu": torch.get_rng_state(), "cuda": cuda}


def load_random_state(state: Mapping[str, Any]) -> None:
    """Takes up what `random_state` returned."""
    torch.set_rng_state(state["cpu"])
    if state["cuda"] and len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all(state["cuda"])


def _take_tensors(node: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """Replaces tensors by references to `tensors`, in a copy of the tree."""
    if isinstance(node, Tensor):
        tensor = node.detach().cpu().contiguous()
        whole = tensor.untyped_storage().nbytes() == tensor.numel() * tensor.element_size()
        tensors[path] = tensor if whole else tensor.clone()
        return {_TENSOR: path}
    if isinstance(node, Mapping):
        return {str(key): _take_tensors(value, f"{path}/{key}", tensors) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_take_tensors(value, f"{path}/{number}", tensors) for number, value in enumerate(node)]
    return node


def _put_tensors(node: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(node, dict):
        if node.keys() == {_TENSOR}:
            return tensors[node[_TENSOR]]
        return {key: _put_tensors(value, tensors) for key, value in node.items()}
    if isinstance(node, list):
        return [_put_tensors(value, tensors) for value in node]
    return node


def _sync_folder(folder: Path) -> None:
    if os.name != "posix":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
