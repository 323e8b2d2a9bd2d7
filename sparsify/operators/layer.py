"""The layers that run sparse: an `nn.Linear` or `nn.Conv2d` of another class and nothing else.

They hold the same weight, mask and bias in the same places. So optimizers, gradient hooks, dynamic methods,
state_dict, copies and checkpoints see the layers that they knew.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsify.operators.conv import sparse_conv2d
from sparsify.operators.linear import sparse_linear


class SparseLinear(nn.Linear):
    """A linear layer whose masked weight runs through `sparsify::sparse_linear`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[..., in] → [..., out]; dense under autocast and while the model is exported."""
        mask = _mask(self, input)
        if mask is None:
            return F.linear(input, self.weight, self.bias)
        return sparse_linear(input, self.weight, mask, self.bias)


class SparseConv2d(nn.Conv2d):
    """A convolution whose masked weight runs through `sparsify::sparse_conv2d`."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        """[batch, in, height, width] → [batch, out, …].

        Dense under autocast, while the model is exported, and for an image without a batch.
        """
        mask = _mask(self, input)
        if mask is None or input.dim() != 4:
            return super().forward(input)
        stride, padding, dilation = self.stride, self.padding, self.dilation
        return sparse_conv2d(
            input,
            self.weight,
            mask,
            self.bias,
            (stride[0], stride[1]),
            (int(padding[0]), int(padding[1])),
            (dilation[0], dilation[1]),
        )


SPARSE: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: SparseLinear, nn.Conv2d: SparseConv2d}


def _mask(layer: nn.Module, x: Tensor) -> Tensor | None:
    if torch.compiler.is_exporting() or torch.is_autocast_enabled(x.device.type):
        return None
    return layer._buffers.get("weight_mask")
