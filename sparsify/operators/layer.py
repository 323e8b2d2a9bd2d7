"""The linear layer that runs sparse: an `nn.Linear` of another class and nothing else.

It holds the same weight, mask and bias in the same places. So optimizers, gradient hooks, dynamic methods,
state_dict, copies and checkpoints see the layer that they knew.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.operators.linear import sparse_linear


class SparseLinear(nn.Linear):
    """A linear layer whose masked weight runs through `sparsify::sparse_linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[..., in] → [..., out]; dense under autocast and while the model is exported."""
        mask = self._buffers.get("weight_mask")
        if mask is None or torch.compiler.is_exporting() or torch.is_autocast_enabled(input.device.type):
            return F.linear(input, self.weight, self.bias)
        return sparse_linear(input, self.weight, mask, self.bias)
