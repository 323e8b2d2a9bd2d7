from __future__ import annotations

import math
from collections import namedtuple

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import sparsify
from sparsify.errors import UserError
from sparsify.train import Arrays, Batch, Data, Windows
from sparsify.train.calling import output_tensor, predict
from sparsify.train.objective import evaluate, loss_of


def test_the_loss_is_found_in_every_kind_of_output():
    logits = torch.randn(2, 3)
    Output = namedtuple("Output", "logits hidden")
    for output in (logits, {"logits": logits}, Output(logits, None), (logits, torch.zeros(1)), [logits]):
        assert output_tensor(output) is logits
    for output in ({"hidden": logits}, (), None, "text"):
        with pytest.raises(UserError, match="the model returns"):
            output_tensor(output)


def test_losses_equal_torch():
    logits, classes = torch.randn(5, 4), torch.tensor([0, 1, 2, 3, 0])
    assert torch.equal(loss_of("classification", logits, classes), F.cross_entropy(logits, classes))
    tokens = torch.randn(2, 3, 7), torch.randint(7, (2, 3))
    expected = F.cross_entropy(tokens[0].transpose(1, 2), tokens[1])
    torch.testing.assert_close(loss_of("language", *tokens), expected)
    values = torch.randn(5, 1), torch.randn(5)
    assert torch.equal(loss_of("regression", *values), F.mse_loss(values[0][:, 0], values[1]))


def test_shapes_that_do_not_fit_are_explained():
    with pytest.raises(UserError, match="class 9, but the model has 4 outputs"):
        loss_of("classification", torch.zeros(1, 4), torch.tensor([9]))
    with pytest.raises(UserError, match=r"\(2, 4\), the targets are \(3,\)"):
        loss_of("classification", torch.zeros(2, 4), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(UserError, match="one value for each target"):
        loss_of("regression", torch.zeros(2, 4), torch.zeros(2))


class Echo(nn.Module):
    """Knows every answer of a counting sequence but for one in four."""

    def forward(self, x):
        assert not self.training
        return 50.0 * F.one_hot((x.reshape(-1).long() + (x.reshape(-1) % 4 == 0).long()) % 10, 10).float()


def test_accuracy_weights_uneven_batches_rightly():
    x = torch.arange(10.0)[:, None]
    data = Data("echo", "classification", Arrays((x,), x[:, 0].long()), Arrays((x,), x[:, 0].long()))
    model = Echo().train()
    metrics = evaluate(model, data, batch_size=4, device=torch.device("cpu"))
    assert metrics["accuracy"] == pytest.approx(0.7)
    assert model.training


def test_bits_per_byte_of_a_uniform_guess_are_eight():
    class Uniform(nn.Module):
        def forward(self, x):
            return torch.zeros(*x.shape, 256)

    tokens = torch.randint(256, (65,), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    data = Data("noise", "language", Windows(tokens, 8), Windows(tokens, 8))
    metrics = evaluate(Uniform(), data, batch_size=3, device=torch.device("cpu"))
    assert metrics["bits_per_byte"] == pytest.approx(8.0)
    assert metrics["loss"] == pytest.approx(math.log(256)) and metrics["perplexity"] == pytest.approx(256)


class Masked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.mix, self.head = nn.Embedding(256, 8), nn.Linear(8, 8), nn.Linear(8, 256)

    def forward(self, tokens, mask=None):
        hidden = self.mix(self.embed(tokens))
        return self.head(hidden if mask is None else hidden * mask[..., None])


def test_a_model_traced_by_name_takes_positional_data():
    torch.manual_seed(0)
    model, tokens = Masked(), torch.randint(256, (3, 8))
    mask = torch.ones(3, 8)
    transformed = sparsify.transform(
        model, (), {"tokens": tokens, "mask": mask}, family="masked", init="preserve"
    )
    expected = transformed(tokens=tokens, mask=mask)
    for batch in (
        Batch((tokens, mask), {}, tokens),
        Batch((tokens,), {"mask": mask}, tokens),
        Batch((), {"tokens": tokens, "mask": mask}, tokens),
    ):
        assert torch.equal(predict(transformed, batch), expected)
    for batch in (Batch((tokens,), {}, tokens), Batch((tokens, mask), {"other": mask}, tokens)):
        with pytest.raises(UserError, match="the model takes tokens, mask; the data gives"):
            predict(transformed, batch)
