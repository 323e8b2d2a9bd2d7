"""The graph module that carries what this package knows about a model."""

from __future__ import annotations

import copy
import warnings
from typing import Any, cast

import torch.fx

from sparsify.errors import SparsifyError, UserError
from sparsify.masks.state import SUFFIX, attach_hooks

KEY = "sparsify"


class SparseGraphModule(torch.fx.GraphModule):
    """A GraphModule whose masks survive copies, with the record of its making.

    The record (plan, parameter map, scaling) lives in `meta["sparsify"]`, which torch carries through
    deepcopy. Parameters lose their hooks there, so the copy gets its own.
    """

    @property
    def sparsify(self) -> Any:
        """The record: plan, parameter map and scaling of this model.

        Raises:
            SparsifyError: When none was stored.
        """
        if KEY not in self.meta:
            raise SparsifyError("this module carries no record in meta['sparsify']")
        return self.meta[KEY]

    @sparsify.setter
    def sparsify(self, record: Any) -> None:
        self.meta[KEY] = record

    def __deepcopy__(self, memo: dict[int, Any]) -> SparseGraphModule:
        with warnings.catch_warnings():
            # torch copies the pytrees of the call, and its own class for leaves warns about itself.
            warnings.simplefilter("ignore", FutureWarning)
            copied = super().__deepcopy__(memo)
        # torch keeps what the graph reads; the rest of the state_dict has been copied too, into the memo.
        copied._modules.update(copy.deepcopy(self._modules, memo))
        copied._parameters.update(copy.deepcopy(self._parameters, memo))
        copied._buffers.update(copy.deepcopy(self._buffers, memo))
        copied._non_persistent_buffers_set |= self._non_persistent_buffers_set
        attach_hooks(copied)
        return cast(SparseGraphModule, copied)

    def __copy__(self) -> SparseGraphModule:
        shallow = SparseGraphModule(self, self.graph)
        shallow.meta = dict(self.meta)
        # Submodules are shared, masks included; those of the root's own parameters no node refers to.
        for name, buffer in self._buffers.items():
            if name.endswith(SUFFIX) and name not in shallow._buffers:
                shallow.register_buffer(name, buffer)
        return shallow

    def __reduce__(self) -> tuple[Any, ...]:
        raise UserError(
            "a sparse model cannot be pickled: it would come back without its record and its mask hooks; "
            "use sparsify.save(model, 'model.pt2') and sparsify.load"
        )
