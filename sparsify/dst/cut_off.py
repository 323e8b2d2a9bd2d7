"""Units that no growth can reach: a model that kept its weights and gave its new units no connections."""

from __future__ import annotations

from torch import nn

from sparsify.errors import UserError


def refuse_cut_off(model: nn.Module, method: str) -> None:
    """Checks that a method that grows by gradient can use the units that a model got beside its old ones.

    A unit without active inputs and outputs has a gradient of exactly zero on both sides, so a method that
    grows where the gradient is large never connects it.

    Args:
        model: Without wrappers.
        method: What to call the method.

    Raises:
        UserError: The model was made with `init="preserve"` and `new_connections=0`.
    """
    preserve = getattr(getattr(model, "sparsify", None), "preserve", None)
    if preserve and preserve["cut_off"] and not preserve["new_connections"]:
        raise UserError(
            f"{method} cannot grow this model: {preserve['cut_off']} of its new units have no connection on "
            "either side, so their gradient is zero for ever; transform it with init='preserve' and "
            "new_connections above 0 (the default is 0.05), or train it with static masks"
        )
