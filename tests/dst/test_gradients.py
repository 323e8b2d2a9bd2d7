"""Dense gradients are held without a copy, and stay what they were."""

from __future__ import annotations

import torch
from torch import nn

from sparsify.dst.gradients import DenseGradients
from sparsify.masks import masked_parameters, set_mask


class Sum(nn.Module):
    """Two parameters whose gradients are one tensor of autograd's."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(4, 4))
        self.other = nn.Parameter(torch.ones(4, 4))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (x * (self.weight + self.other)).sum()


def _collecting(window: int = 2, decays=None) -> tuple[Sum, DenseGradients]:
    model = Sum()
    set_mask(model, "weight", torch.eye(4, dtype=torch.bool))
    gradients = DenseGradients(masked_parameters(model), window, decays)
    gradients.prepare(0, window)
    return model, gradients


def test_a_gradient_that_another_parameter_shares_is_not_changed_through_it():
    model, gradients = _collecting()
    x = torch.arange(16.0).reshape(4, 4)
    model(x).backward()
    model.other.grad.mul_(100)
    model.weight.grad.zero_()
    assert gradients.reduce()
    assert torch.equal(gradients.sum_of("weight"), x)


def test_what_autograd_still_refers_to_is_not_written_to():
    model, gradients = _collecting(2, {"weight": (0.5, None)})
    x = torch.arange(16.0).reshape(4, 4)
    product = model.weight + model.other
    product.retain_grad()
    (x * product).sum().backward()
    gradients.advance()
    model(x).backward()
    assert gradients.reduce()
    assert torch.equal(product.grad, x)
    assert torch.equal(gradients.sum_of("weight"), 1.5 * x)


def test_the_first_gradient_of_a_window_takes_no_copy():
    model, gradients = _collecting()
    seen: list[int] = []
    model.weight.register_hook(lambda grad: seen.append(grad.data_ptr()))
    product = model.weight + model.other
    product.register_hook(lambda grad: seen.append(grad.data_ptr()))
    product.sum().backward()
    assert gradients.reduce()
    assert gradients.sum_of("weight").data_ptr() == seen[0]
