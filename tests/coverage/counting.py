"""FLOPs of a running model, counted by torch and not by the planner, with masked weights at their density."""

from __future__ import annotations

from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from tests.coverage.rows import Example


class _Counter(FlopCounterMode):
    """Counts an operator that reads a masked weight at the weight's density."""

    def __init__(self, densities: dict[int, float]) -> None:
        super().__init__(display=False)
        self.mod_tracker = nullcontext()  # counts by module are not needed
        self.densities = densities
        self.total = 0.0

    def _count_flops(self, func_packet: Any, out: Any, args: Any, kwargs: Any) -> Any:
        if func_packet in self.flop_registry:
            flops = self.flop_registry[func_packet](*args, **kwargs, out_val=out)
            for tensor in tree_leaves((args, kwargs)):
                if isinstance(tensor, Tensor):
                    flops *= self.densities.get(tensor.untyped_storage().data_ptr(), 1.0)
            self.total += flops
        return out


def count_flops(model: nn.Module, example: Example) -> float:
    """FLOPs of one call in eval mode.

    Attention runs as plain matrix products and recurrent layers step by step: torch does not count their
    fused kernels for CPUs.
    """
    parameters = dict(model.named_parameters(remove_duplicate=False))
    masks = {
        name.removesuffix("_mask"): mask for name, mask in model.named_buffers() if name.endswith("_mask")
    }
    densities = {
        parameters[name].untyped_storage().data_ptr(): float(mask.double().mean())
        for name, mask in masks.items()
        if name in parameters and mask.dtype is torch.bool
    }
    args, kwargs = example
    counter = _Counter(densities)
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    with counter, sdpa_kernel(SDPBackend.MATH), torch.backends.mkldnn.flags(enabled=False), torch.no_grad():
        model(*args, **kwargs)
    torch.backends.mha.set_fastpath_enabled(fast)
    return counter.total
