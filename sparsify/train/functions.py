"""Functions that a user names as `package.module:function`."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from sparsify.errors import UserError

Function = Callable[..., Any]


def import_function(path: str, what: str) -> Function:
    """Imports `package.module:function`.

    Args:
        path: What to import.
        what: What it is for, for the message: `loss`, `data`.

    Raises:
        UserError: When it cannot be imported or called.
    """
    module, _, name = path.partition(":")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UserError(f"{what} '{path}' cannot be imported: {error}") from error
    if not callable(function):
        raise UserError(f"{what} '{path}' is a {type(function).__name__}, not a function")
    result: Function = function
    return result
