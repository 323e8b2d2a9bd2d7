"""Files of torch.save and safetensors: whole modules with consent, and weights for a factory's model."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from sparsify.archive.consent import PickleConsentError
from sparsify.errors import UserError

Factory = str | Callable[[], nn.Module]


def load_safetensors(path: Path, factory: Factory | None) -> nn.Module:
    """Fills a factory's model from a safetensors file.

    Raises:
        UserError: Without a factory, or when file and model do not fit, or the file is damaged.
    """
    try:
        state = load_file(path)
    except Exception as error:
        raise UserError(f"{path} is damaged: {error}") from error
    return _filled(path, state, factory)


def load_pickle(path: Path, *, trust_pickle: bool, factory: Factory | None) -> nn.Module:
    """Loads a file of torch.save: a state_dict without running code, anything else with consent.

    Raises:
        PickleConsentError: When it holds more than tensors and `trust_pickle` is not set.
        UserError: When it is damaged, or holds no model, or its classes cannot be imported.
    """
    try:
        content = torch.load(path, weights_only=True, map_location="cpu")
    except Exception as error:
        _raise_if_damaged(path, error)
        if not trust_pickle:
            raise PickleConsentError(
                f"{path} is a pickled object, not only weights: loading it runs its code"
            ) from error
        content = _unpickled(path)
    if isinstance(content, nn.Module):
        return content.eval()
    return _filled(path, _state_in(path, content), factory)


def _raise_if_damaged(path: Path, error: Exception) -> None:
    text = str(error)
    if isinstance(error, (EOFError, OSError)) or "PytorchStreamReader" in text or "unexpected EOF" in text:
        raise UserError(f"{path} is damaged or cut off: {(text.splitlines() or [''])[0]}") from error


def _unpickled(path: Path) -> Any:
    try:
        with _importing_from_here():
            return torch.load(path, weights_only=False, map_location="cpu")
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"{path} is a pickle of a class that cannot be imported here ({error}). Run where the "
            f"code that defines "
            "the model can be imported, define the class in a module and not in a script, or save a "
            "state_dict"
        ) from error
    except Exception as error:
        raise UserError(f"{path} cannot be unpickled: {error}") from error


def _state_in(path: Path, content: Any) -> Mapping[str, Tensor]:
    """The state_dict in what a file holds, also where it lies in a checkpoint under a usual name."""
    for candidate in (
        content,
        *(content.get(k) for k in ("state_dict", "model") if isinstance(content, Mapping)),
    ):
        if isinstance(candidate, nn.Module):
            candidate = candidate.state_dict()
        if (
            isinstance(candidate, Mapping)
            and candidate
            and all(isinstance(t, Tensor) for t in candidate.values())
        ):
            return candidate
    raise UserError(f"{path} holds {type(content).__name__}, neither a module nor a state_dict")


def _filled(path: Path, state: Mapping[str, Tensor], factory: Factory | None) -> nn.Module:
    if factory is None:
        raise UserError(
            f"{path} holds weights only; name what builds the model: factory='package.module:callable', or "
            "--model package.module:callable"
        )
    model = _built(factory)
    try:
        model.load_state_dict(dict(state))
    except RuntimeError as error:
        raise UserError(f"the weights in {path} do not fit {type(model).__name__}: {error}") from error
    return model.eval()


def _built(factory: Factory) -> nn.Module:
    make = _imported(factory) if isinstance(factory, str) else factory
    model = make()
    if not isinstance(model, nn.Module):
        raise UserError(f"the factory {factory!r} made {type(model).__name__}, not an nn.Module")
    return model


def _imported(name: str) -> Callable[[], nn.Module]:
    module_name, colon, attribute = name.partition(":")
    if not colon or not module_name or not attribute:
        raise UserError(f"'{name}' names no factory; write package.module:callable")
    try:
        with _importing_from_here():
            target: Any = importlib.import_module(module_name)
            for part in attribute.split("."):
                target = getattr(target, part)
    except (ImportError, AttributeError) as error:
        raise UserError(f"cannot import the factory '{name}': {error}") from error
    if not callable(target):
        raise UserError(f"the factory '{name}' is no callable")
    return target  # type: ignore[no-any-return]


@contextmanager
def _importing_from_here() -> Iterator[None]:
    """Imports also from the working directory, as `python script.py` beside the model's code would."""
    here = str(Path.cwd())
    added = here not in sys.path
    if added:
        sys.path.insert(0, here)
    try:
        yield
    finally:
        if added:
            sys.path.remove(here)
