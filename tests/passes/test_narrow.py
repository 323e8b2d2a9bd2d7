"""Dead neurons, filters and channels go, and outputs stay."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import sparsify
from sparsify.errors import UserError
from tests.models import MLP, FlattenCNN, ResNet, randomise_statistics
from tests.passes.narrowing import Narrowing, mlp, untouched


def chain(bias: float, padding: int) -> nn.Sequential:
    """conv → BN → ReLU → conv, of which channel 2 of the first BN emits relu(bias)."""
    torch.manual_seed(0)
    first, second = nn.Conv2d(3, 8, 3, bias=False), nn.Conv2d(8, 5, 3, padding=padding, bias=False)
    model = nn.Sequential(first, nn.BatchNorm2d(8), nn.ReLU(), second, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    randomise_statistics(model)
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 1.5)
        model[1].weight[2], model[1].bias[2] = 0, bias
    return model


IMAGES = torch.randn(2, 3, 9, 9)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.GELU(), nn.SiLU(), nn.Sigmoid(), nn.Softplus()])
def test_a_neuron_that_nothing_feeds_leaves_its_constant_in_the_next_bias(activation):
    case = Narrowing(mlp(activation), torch.randn(2, 6))
    case.model[0].weight.data[[1, 4]] = 0
    case.model[0].bias.data[[1, 4]] = torch.tensor([1.5, -0.7])
    case.narrow().loses({"0.weight[0]": (1, 4)}).keeps_outputs().is_smaller()
    kept = [0, 2, 3, 5, 6, 7, 8, 9]
    constant = activation(torch.tensor([1.5, -0.7]))
    expected = case.model[2].bias + case.model[2].weight[:, [1, 4]] @ constant
    torch.testing.assert_close(case.result.get_submodule("2").bias, expected)
    assert torch.equal(case.result.get_submodule("0").weight, case.model[0].weight[kept])


def test_a_bias_is_created_where_there_is_none():
    case = Narrowing(mlp(nn.Sigmoid(), bias=False), torch.randn(2, 6))
    case.model[0].weight.data[3] = 0  # sigmoid(0) = 1/2
    case.narrow().loses({"0.weight[0]": (3,)}).keeps_outputs()
    created = case.result.get_submodule("2").bias
    torch.testing.assert_close(created, case.model[2].weight[:, 3] / 2)
    entry = next(e for e in case.result.sparsify.parameter_map if e.new == "2.bias")
    assert entry.how == "added"


def test_a_neuron_that_nobody_reads_goes_whatever_it_computes():
    case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6))
    case.model[2].weight.data[:, 7] = 0
    case.narrow().loses({"0.weight[0]": (7,)}).keeps_outputs().is_smaller()
    assert torch.equal(case.result.get_submodule("2").bias, case.model[2].bias)


def test_what_only_dead_neurons_read_is_dead():
    case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6))
    case.model[4].weight.data[:, 5] = 0  # neuron 5 of the second layer is unread
    case.model[2].weight.data[:, 8] = 0
    case.model[2].weight.data[5, 8] = 1  # and alone reads neuron 8 of the first
    case.narrow().loses({"0.weight[0]": (8,), "2.weight[0]": (5,)}).keeps_outputs()


def test_what_only_constants_feed_is_constant():
    case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6))
    case.model[0].weight.data[2] = 0
    case.model[2].weight.data[6] = 0
    case.model[2].weight.data[6, 2] = 1  # neuron 6 reads the constant neuron 2, and nothing else
    case.narrow().loses({"0.weight[0]": (2,), "2.weight[0]": (6,)}).keeps_outputs()


def test_one_unit_of_each_group_stays():
    case = Narrowing(mlp(nn.ReLU()), torch.randn(2, 6))
    case.model[0].weight.data.zero_()
    case.narrow().keeps_outputs()
    assert [len(group.removed) for group in case.result.meta["narrowing"].groups] == [9, 9]
    assert case.result.get_submodule("2").weight.shape == (1, 1)


def test_nothing_dead_nothing_removed():
    case = Narrowing(MLP(), torch.randn(2, 12)).narrow().loses({}).keeps_outputs()
    report = case.result.meta["narrowing"]
    assert report.parameters[0] == report.parameters[1] and report.flops[0] == report.flops[1]
    assert report.max_abs_error == 0
    for name, parameter in case.model.named_parameters():
        assert torch.equal(parameter, case.result.get_parameter(name))
        assert parameter.data_ptr() != case.result.get_parameter(name).data_ptr()


def test_the_given_model_is_left_as_it_was():
    case = Narrowing(mlp(nn.GELU()), torch.randn(2, 6)).change(lambda m: m[0].weight[2].zero_())
    case.model.train()
    untouched(case, case.narrow)
    assert case.removed and case.model.training and case.result.training


def test_behind_padding_only_a_zero_goes():
    Narrowing(chain(bias=-0.5, padding=1), IMAGES).narrow().loses({"0.weight[0]": (2,)}).keeps_outputs()
    Narrowing(chain(bias=0.5, padding=1), IMAGES).narrow().loses({}).keeps_outputs()


def test_without_padding_the_constant_of_a_batch_norm_moves_into_a_new_bias():
    case = Narrowing(chain(bias=0.5, padding=0), IMAGES).narrow().loses({"0.weight[0]": (2,)}).keeps_outputs()
    expected = 0.5 * case.model[3].weight[:, 2].sum((1, 2))
    torch.testing.assert_close(case.result.get_submodule("3").bias, expected)
    assert case.result.get_submodule("1").num_features == 7


def test_padding_that_repeats_the_input_keeps_a_constant():
    model = chain(bias=0.5, padding=0)
    model[2] = nn.Sequential(nn.ReLU(), nn.ReflectionPad2d(1))
    Narrowing(model, IMAGES).narrow().loses({"0.weight[0]": (2,)}).keeps_outputs()


def test_a_filter_of_zeros_before_a_batch_norm():
    model = chain(bias=0.1, padding=0)
    with torch.no_grad():
        model[0].weight[5] = 0
    Narrowing(model, IMAGES).narrow().loses({"0.weight[0]": (2, 5)}).keeps_outputs()


class TestResidual:
    """A channel of a residual stream is the sum of what every block adds to it."""

    def net(self, *, whole: bool, last: float) -> ResNet:
        torch.manual_seed(0)
        model = randomise_statistics(ResNet())
        with torch.no_grad():
            for norm in (model.bn, model.layer1.bn2) if whole else (model.bn,):
                norm.weight[3], norm.bias[3] = 0, 0.25
            model.layer1.bn2.bias[3] = last
        return model

    def test_goes_when_all_its_producers_are_constant_and_the_sum_is_zero(self):
        case = Narrowing(self.net(whole=True, last=-0.5), torch.randn(2, 1, 8, 8)).narrow()
        assert case.loses({}).keeps_outputs()  # the stem's 0.25 is read by a padded convolution
        case.model.bn.bias.data[3] = -0.25
        case.narrow().loses({"stem.weight[0]": (3,)}).keeps_outputs()

    def test_stays_when_one_producer_is_alive(self):
        case = Narrowing(self.net(whole=False, last=-0.5), torch.randn(2, 1, 8, 8)).narrow()
        assert case.loses({}).keeps_outputs()


def test_depthwise_convolutions_lose_the_channel_too():
    case = Narrowing(FlattenCNN(), torch.randn(2, 1, 8, 8))
    case.model.conv1.weight.data[1], case.model.conv1.bias.data[1] = 0, -1.0
    case.model.depthwise.bias.data[1] = 0.7  # what the channel still emits, read by a 1x1 convolution
    case.narrow().loses({"conv1.weight[0]": (1,)}).keeps_outputs()
    assert case.result.get_submodule("depthwise").groups == 7


def test_a_constant_before_a_padded_depthwise_convolution_changes_at_the_border():
    case = Narrowing(FlattenCNN(), torch.randn(2, 1, 8, 8))
    case.model.conv1.weight.data[1], case.model.conv1.bias.data[1] = 0, 1.0
    case.narrow().loses({}).keeps_outputs()


def test_flattened_channels_take_all_their_places_along():
    case = Narrowing(FlattenCNN(), torch.randn(2, 1, 8, 8))
    case.model.pointwise.weight.data[3], case.model.pointwise.bias.data[3] = 0, 0.4
    case.narrow().loses({"pointwise.weight[0]": (3,)}).keeps_outputs()
    kept = [place for place in range(256) if place // 16 != 3]
    assert torch.equal(case.result.get_submodule("fc1").weight, case.model.fc1.weight[:, kept])


class Joined(nn.Module):
    """Two branches concatenated, in this order, then mixed; one is also read alone."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 6, 1)
        self.mix = nn.Conv2d(10, 7, 3, padding=1)
        self.alone = nn.Conv2d(6, 7, 1)

    def forward(self, x):
        left, right = F.relu(self.left(x)), F.relu(self.right(x))
        return self.mix(torch.cat([left, right], 1)) + self.alone(right)


def test_concatenated_channels_are_found_at_their_offset():
    case = Narrowing(Joined(), IMAGES)
    case.model.left.weight.data[2], case.model.left.bias.data[2] = 0, -1
    case.model.right.weight.data[[0, 5]], case.model.right.bias.data[[0, 5]] = 0, -1
    case.narrow().loses({"left.weight[0]": (2,), "right.weight[0]": (0, 5)}).keeps_outputs()
    kept = [0, 1, 3, 5, 6, 7, 8]
    assert torch.equal(case.result.get_submodule("mix").weight, case.model.mix.weight[:, kept])


def test_a_channel_is_needed_while_one_of_its_readers_needs_it():
    case = Narrowing(Joined(), IMAGES)
    case.model.mix.weight.data[:, 4 + 1] = 0
    case.narrow().loses({})
    case.model.alone.weight.data[:, 1] = 0
    case.narrow().loses({"right.weight[0]": (1,)}).keeps_outputs()


class Shuffled(nn.Module):
    """ShuffleNet's unit: grouped convolution, channel shuffle, chunk."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 1)
        self.grouped = nn.Conv2d(12, 12, 3, padding=1, groups=3)
        self.left, self.right = nn.Conv2d(6, 5, 1), nn.Conv2d(6, 5, 1)

    def forward(self, x):
        x = F.relu(self.grouped(F.relu(self.stem(x))))
        n, c, h, w = x.shape
        x = x.view(n, 3, c // 3, h, w).transpose(1, 2).reshape(n, c, h, w)
        left, right = x.chunk(2, 1)
        return self.left(left) + self.right(right)


def test_shuffled_and_grouped_channels_go_together_or_not_at_all():
    case = Narrowing(Shuffled(), IMAGES).narrow().loses({}).keeps_outputs()
    report = case.result.meta["narrowing"]
    stem = next(group for group in report.groups if group.id == "stem.weight[0]")
    assert (stem.size, stem.granularity) == (4, 3)
    case.model.stem.weight.data[1::4], case.model.stem.bias.data[1::4] = 0, -1
    case.narrow().loses({"stem.weight[0]": (1,)}).keeps_outputs()
    assert case.result.get_submodule("grouped").weight.shape == (12, 3, 3, 3)
    case.model.stem.weight.data[1] = 1  # one of the three is alive
    case.narrow().loses({})


class Halves(nn.Module):
    """Chunks must stay of one size: a channel of one half goes only with its counterpart in the other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.left, self.right = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 5, 1), nn.Conv2d(4, 5, 1)

    def forward(self, x):
        left, right = F.relu(self.stem(x)).chunk(2, 1)
        return self.left(left) - self.right(right)


def test_chunks_lose_the_same_place_each():
    case = Narrowing(Halves(), IMAGES)
    case.model.left.weight.data[:, 1] = 0
    case.narrow().loses({})
    case.model.right.weight.data[:, 1] = 0
    case.narrow().loses({"stem.weight[0]": (1,)}).keeps_outputs()
    assert torch.equal(case.result.get_submodule("stem").weight, case.model.stem.weight[[0, 2, 3, 4, 6, 7]])


class Gated(nn.Module):
    """Squeeze and excitation: channels times a gate of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.out = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 4, 1)
        self.squeeze, self.excite = nn.Linear(6, 5), nn.Linear(5, 6)

    def forward(self, x):
        x = F.relu(self.conv(x))
        gate = torch.sigmoid(self.excite(F.silu(self.squeeze(x.mean((2, 3))))))
        return self.out(x * gate[:, :, None, None])


def test_a_zero_channel_goes_whatever_its_gate_says_and_another_constant_does_not():
    case = Narrowing(Gated(), IMAGES)
    case.model.conv.weight.data[2], case.model.conv.bias.data[2] = 0, -1
    case.narrow().loses({"conv.weight[0]": (2,)}).keeps_outputs()
    case.model.conv.bias.data[2] = 1
    case.narrow().loses({}).keeps_outputs()


class Twice(nn.Module):
    """One layer called on two values."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.shared = nn.Linear(4, 6), nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x):
        return self.shared(torch.sigmoid(self.a(x))) - 2 * self.shared(torch.sigmoid(self.b(x)))


def test_a_layer_called_twice_takes_over_only_what_both_calls_agree_on():
    case = Narrowing(Twice(), torch.randn(2, 4))
    for layer in (case.model.a, case.model.b):
        layer.weight.data[1], layer.bias.data[1] = 0, 0.5
    case.narrow().loses({"a.weight[0]": (1,)}).keeps_outputs()
    case.model.b.bias.data[1] = 0.6
    case.narrow().loses({})


class Normed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 8), norm, nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.norm(self.first(x)))


@pytest.mark.parametrize("norm", [nn.LayerNorm(8), nn.RMSNorm(8), nn.GroupNorm(2, 8), nn.Softmax(-1)])
def test_what_a_norm_runs_over_is_refused_by_name(norm):
    case = Narrowing(Normed(norm), torch.randn(2, 4))
    case.model.first.weight.data[2], case.model.first.bias.data[2] = 0, 0
    case.model.last.weight.data[:, 2] = 0
    case.narrow().loses({}).keeps_outputs()
    reason = case.refusals["first.weight[0]"].reason
    assert "over it" in reason or "normalizes" in reason, reason
    with pytest.raises(UserError, match=r"first\.weight\[0\].*must keep its size"):
        case.narrow(units={"first.weight[0]": [2]})


def test_a_mean_over_channels_is_refused_and_a_sum_takes_zeros():
    class Reduced(nn.Module):
        def __init__(self, how: str) -> None:
            super().__init__()
            self.first, self.how = nn.Linear(4, 8), how

        def forward(self, x):
            return getattr(F.relu(self.first(x)), self.how)(1, keepdim=True)

    for how in ("mean", "sum"):
        case = Narrowing(Reduced(how), torch.randn(2, 4))
        case.model.first.weight.data[2], case.model.first.bias.data[2] = 0, -1
        case.model.first.weight.data[3], case.model.first.bias.data[3] = 0, 1
        case.narrow().loses({"first.weight[0]": (2,)} if how == "sum" else {}).keeps_outputs()
        assert ("reduces over it" in str(case.refusals)) == (how == "mean")


def test_a_model_can_be_narrowed_again_and_again():
    model = mlp(nn.GELU())
    model[0].weight.data[2] = 0
    once = sparsify.narrow(model, (torch.randn(2, 6),))
    assert once.meta["narrowing"].parameters[1] < once.meta["narrowing"].parameters[0]
    twice = sparsify.narrow(once)
    assert not any(group.removed for group in twice.meta["narrowing"].groups)
    x = torch.randn(7, 6)
    torch.testing.assert_close(twice(x), model(x))
