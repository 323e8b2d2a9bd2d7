"""Models without convolutions, written for the coverage table; those with them are in `written`."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Recurrent(nn.Module):
    """A bidirectional LSTM and a GRU between layers that can be transformed."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.expand = nn.Linear(6, 24), nn.Linear(24, 16)
        self.lstm = nn.LSTM(16, 12, num_layers=2, batch_first=True, bidirectional=True)
        self.gru = nn.GRU(24, 10, batch_first=True)
        self.hidden1, self.hidden2 = nn.Linear(10, 32), nn.Linear(32, 16)
        self.out = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x, _ = self.lstm(self.expand(F.relu(self.inward(x))))
        x, _ = self.gru(x)
        return self.out(F.relu(self.hidden2(F.relu(self.hidden1(x)))))


class Cells(nn.Module):
    """LSTM and GRU cells called once, and a plain RNN."""

    def __init__(self) -> None:
        super().__init__()
        self.inward, self.mid = nn.Linear(6, 16), nn.Linear(16, 16)
        self.lstm, self.gru = nn.LSTMCell(16, 12), nn.GRUCell(12, 12)
        self.rnn = nn.RNN(12, 8, batch_first=True)
        self.hidden, self.out = nn.Linear(8, 24), nn.Linear(24, 3)

    def forward(self, x: Tensor) -> Tensor:
        state, _ = self.lstm(F.relu(self.mid(F.relu(self.inward(x)))))
        y, _ = self.rnn(self.gru(state)[:, None])
        return self.out(F.relu(self.hidden(y[:, 0])))


class Recommender(nn.Module):
    """Bags of categories beside dense features, and their pairwise products, as in DLRM."""

    def __init__(self) -> None:
        super().__init__()
        self.bags = nn.ModuleList(nn.EmbeddingBag(30, 16, mode=mode) for mode in ("sum", "mean"))
        self.bottom = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.top = nn.Sequential(nn.Linear(16 + 9, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU())
        self.out = nn.Linear(16, 1)

    def forward(self, x: Tensor, first: Tensor, second: Tensor) -> Tensor:
        dense = self.bottom(x)
        parts = torch.stack([dense, self.bags[0](first), self.bags[1](second)], 1)
        products = torch.bmm(parts, parts.transpose(1, 2)).flatten(1)
        return self.out(self.top(torch.cat([dense, products], 1)))


class TextBags(nn.Module):
    """One bag of words into a classifier: the width of the table may follow."""

    def __init__(self) -> None:
        super().__init__()
        self.bag = nn.EmbeddingBag(64, 16, mode="mean")
        self.hidden1, self.hidden2 = nn.Linear(16, 32), nn.Linear(32, 24)
        self.out = nn.Linear(24, 4)

    def forward(self, input_ids: Tensor) -> Tensor:
        return self.out(F.relu(self.hidden2(F.relu(self.hidden1(self.bag(input_ids))))))


class TiedAutoencoder(nn.Module):
    """The decoder multiplies by the encoder's weights, transposed; a table is also the readout."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(40, 16)
        self.encode1, self.encode2 = nn.Linear(16, 32), nn.Linear(32, 24)
        self.bias = nn.Parameter(torch.zeros(32))

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.encode2(F.relu(self.encode1(self.table(input_ids))))
        x = F.relu(F.linear(F.relu(x), self.encode2.weight.t(), self.bias))
        return F.linear(x @ self.encode1.weight, self.table.weight)


class CalledTwice(nn.Module):
    """One block called three times, as in networks that share weights over depth."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(12, 24)
        self.block = nn.Sequential(nn.LayerNorm(24), nn.Linear(24, 48), nn.GELU(), nn.Linear(48, 24))
        self.out = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        for _ in range(3):
            x = x + self.block(x)
        return self.out(x)


class RawParameters(nn.Module):
    """No layer modules at all: F.linear, F.conv2d, matmul and einsum on parameters."""

    def __init__(self) -> None:
        super().__init__()
        self.filters = nn.Parameter(torch.randn(16, 3, 3, 3) * 0.2)
        self.more = nn.Parameter(torch.randn(24, 16, 3, 3) * 0.1)
        self.shift = nn.Parameter(torch.zeros(24))
        self.scale = nn.Parameter(torch.ones(24))
        self.first = nn.Parameter(torch.randn(32, 24) * 0.2)
        self.second = nn.Parameter(torch.randn(32, 20) * 0.2)
        self.third = nn.Parameter(torch.randn(20, 16) * 0.2)
        self.last = nn.ParameterDict({"w": torch.randn(5, 16) * 0.2, "b": torch.zeros(5)})

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(F.conv2d(x, self.filters, padding=1))
        x = F.relu(F.conv2d(x, self.more, self.shift, stride=2, padding=1))
        x = F.layer_norm(x.mean((2, 3)), (24,), self.scale, self.shift)
        x = F.relu(F.linear(x, self.first))
        x = torch.einsum("bi,io->bo", F.relu(x @ self.second), self.third)
        return F.linear(F.relu(x), self.last["w"], self.last["b"])


class Attention(nn.Module):
    """nn.MultiheadAttention and nn.TransformerEncoderLayer, self and cross."""

    def __init__(self) -> None:
        super().__init__()
        self.inward = nn.Linear(10, 32)
        self.encoder = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True, norm_first=True)
        self.queries = nn.Parameter(torch.randn(3, 32))
        self.cross = nn.MultiheadAttention(32, 4, batch_first=True)
        self.fc1, self.fc2, self.out = nn.Linear(32, 48), nn.Linear(48, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.encoder(self.inward(x))
        y, _ = self.cross(self.queries.expand(x.shape[0], -1, -1), x, x, need_weights=False)
        return self.out(y + self.fc2(F.relu(self.fc1(y))))


class OneHead(nn.Module):
    """Attention with one head: there is no number of heads to grow."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inward = nn.Linear(6, width)
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.mix = nn.Linear(width, width)
        self.fc1, self.fc2, self.out = nn.Linear(width, 40), nn.Linear(40, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        y = F.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x))
        x = x + self.mix(y)
        return self.out(x + self.fc2(F.gelu(self.fc1(x))))


class SizesAsValues(nn.Module):
    """Norms and means spelled out, with widths as numbers in the arithmetic."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.inward, self.fc1 = nn.Linear(6, width), nn.Linear(width, 40)
        self.fc2, self.out = nn.Linear(40, width), nn.Linear(width, 3)
        self.gain, self.shift = nn.Parameter(torch.ones(width)), nn.Parameter(torch.zeros(width))

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        mean = x.sum(-1, keepdim=True) / x.shape[-1]
        variance = ((x - mean) ** 2).sum(-1, keepdim=True) / 24
        x = (x - mean) / torch.sqrt(variance + 1e-5) * self.gain + self.shift
        y = F.gelu(self.fc1(x))
        y = y / (y.norm(dim=-1, keepdim=True) * 40**-0.5 + 1e-6)
        return self.out(x + self.fc2(y))


class Mixer(nn.Module):
    """Layers across tokens and across channels."""

    def __init__(self, width: int = 24, tokens: int = 16) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 4, 4)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.token1, self.token2 = nn.Linear(tokens, 20), nn.Linear(20, tokens)
        self.channel1, self.channel2 = nn.Linear(width, 48), nn.Linear(48, width)
        self.fc = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).flatten(2).transpose(1, 2)
        x = x + self.token2(F.gelu(self.token1(self.norm1(x).transpose(1, 2)))).transpose(1, 2)
        return self.fc((x + self.channel2(F.gelu(self.channel1(self.norm2(x))))).mean(1))


class Experts(nn.Module):
    """Experts that tokens are routed to: each reads the rows that chose it."""

    def __init__(self, width: int = 16, experts: int = 3) -> None:
        super().__init__()
        self.inward, self.gate = nn.Linear(6, width), nn.Linear(width, experts, bias=False)
        self.up = nn.Parameter(torch.randn(experts, width, 32) * 0.2)
        self.down = nn.Parameter(torch.randn(experts, 32, width) * 0.2)
        self.fc1, self.fc2, self.out = nn.Linear(width, 40), nn.Linear(40, width), nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        weights, chosen = self.gate(x).softmax(-1).topk(2, -1)
        y = torch.einsum("bti,eij->btej", x, self.up)
        y = torch.einsum("btej,eji->btei", F.silu(y), self.down)
        picked = y.gather(2, chosen[..., None].expand(*chosen.shape, y.shape[-1]))
        x = x + (weights[..., None] * picked).sum(2)
        return self.out(x + self.fc2(F.relu(self.fc1(x))))


class Spectral(nn.Module):
    """A Fourier transform over the channels beside an ordinary feed-forward block."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inward, self.fc1, self.fc2 = nn.Linear(6, width), nn.Linear(width, 40), nn.Linear(40, width)
        self.out = nn.Linear(width, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.inward(x)
        x = x + torch.fft.fft(x).real
        return self.out(x + self.fc2(F.relu(self.fc1(x))))
