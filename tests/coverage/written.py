"""Models written for the coverage table: structures that third-party libraries combine in other ways."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def conv_block(inputs: int, outputs: int, size: int = 3, **options: int) -> nn.Sequential:
    """Convolution, BatchNorm, ReLU."""
    conv = nn.Conv2d(inputs, outputs, size, padding=size // 2, bias=False, **options)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class DenseNet(nn.Module):
    """Each layer reads the concatenation of all before it; norms come first."""

    def __init__(self, growth: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.norms, self.layers = nn.ModuleList(), nn.ModuleList()
        for index in range(3):
            self.norms.append(nn.BatchNorm2d(16 + growth * index))
            self.layers.append(nn.Conv2d(16 + growth * index, growth, 3, padding=1, bias=False))
        self.transition = nn.Conv2d(16 + 3 * growth, 24, 1, bias=False)
        self.last = nn.Conv2d(24, 16, 3, padding=1)
        self.fc = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        found = [self.stem(x)]
        for norm, layer in zip(self.norms, self.layers, strict=True):
            found.append(layer(F.relu(norm(torch.cat(found, 1)))))
        x = F.avg_pool2d(self.transition(torch.cat(found, 1)), 2)
        return self.fc(F.relu(self.last(x)).mean((2, 3)))


class ShuffleUnit(nn.Module):
    """Half of the channels passes, the other half goes through a branch; then channels are shuffled."""

    def __init__(self, width: int) -> None:
        super().__init__()
        half = width // 2
        self.branch = nn.Sequential(
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
            nn.Conv2d(half, half, 3, padding=1, groups=half, bias=False),
            nn.BatchNorm2d(half),
            nn.Conv2d(half, half, 1, bias=False),
            nn.BatchNorm2d(half),
            nn.ReLU(),
        )

    def forward(self, x: Tensor) -> Tensor:
        kept, taken = x.chunk(2, 1)
        x = torch.cat([kept, self.branch(taken)], 1)
        batch, channels, height, width = x.shape
        x = x.view(batch, 2, channels // 2, height, width).transpose(1, 2).contiguous()
        return x.view(batch, channels, height, width)


class ShuffleNet(nn.Module):
    """Chunk, depthwise branch, concatenation, channel shuffle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = conv_block(3, 24)
        self.units = nn.Sequential(ShuffleUnit(24), ShuffleUnit(24))
        self.last = conv_block(24, 32, 1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.last(self.units(self.stem(x))).mean((2, 3)))


class SqueezeExcite(nn.Module):
    """A gate for each channel, computed from all of them; a residual block with a projected shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = conv_block(3, 16), conv_block(16, 32)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)
        self.fc1, self.fc2 = nn.Linear(32, 8), nn.Linear(8, 32)
        self.shortcut = nn.Conv2d(16, 32, 1)
        self.fc = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        y = self.body(x)
        y = y * self.excite(F.silu(self.squeeze(F.adaptive_avg_pool2d(y, 1)))).sigmoid()
        gate = F.hardsigmoid(self.fc2(F.relu(self.fc1(y.mean((2, 3))))))
        y = F.relu(y * gate[:, :, None, None] + self.shortcut(x))
        return self.fc(y.flatten(2).mean(-1))


class UNet(nn.Module):
    """Two resolutions; skips are concatenated; one way up is a transposed convolution, one is resampling."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inward = conv_block(3, width)
        self.down1, self.down2 = conv_block(width, 2 * width), conv_block(2 * width, 2 * width)
        self.up = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.merge1 = conv_block(3 * width, 2 * width)
        self.merge2 = conv_block(3 * width, width)
        self.out = nn.Conv2d(width, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        a = self.inward(x)
        b = self.down1(F.max_pool2d(a, 2))
        c = self.down2(F.max_pool2d(b, 2))
        d = self.merge1(torch.cat([self.up(c), b], 1))
        d = F.interpolate(d, size=a.shape[-2:], mode="bilinear", align_corners=False)
        return self.out(self.merge2(torch.cat([a, d], 1)))


class GroupedAndDepthwise(nn.Module):
    """Grouped and depthwise convolutions, GroupNorm, InstanceNorm and PReLU."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, padding=1)
        self.grouped = nn.Conv2d(16, 32, 3, padding=1, groups=4, bias=False)
        self.norm = nn.GroupNorm(4, 32)
        self.depthwise = nn.Conv2d(32, 64, 3, padding=1, groups=32)
        self.instance = nn.InstanceNorm2d(64, affine=True)
        self.slopes = nn.PReLU(64)
        self.pointwise = nn.Conv2d(64, 24, 1)
        self.slope = nn.PReLU()
        self.plain = nn.InstanceNorm2d(24)
        self.mix = nn.Conv2d(24, 24, 3, padding=1, groups=2)
        self.fc = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.grouped(F.relu(self.stem(x)))))
        x = self.slopes(self.instance(self.depthwise(x)))
        x = self.plain(self.slope(self.pointwise(x)))
        return self.fc(F.gelu(self.mix(x)).mean((2, 3)))


class Generator(nn.Module):
    """Transposed convolutions, one of them grouped and one depthwise, from a vector to an image."""

    def __init__(self) -> None:
        super().__init__()
        self.start = nn.Linear(12, 32 * 4 * 4)
        self.up1 = nn.ConvTranspose2d(32, 24, 4, stride=2, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(24)
        self.up2 = nn.ConvTranspose2d(24, 16, 3, stride=2, padding=1, output_padding=1, groups=2)
        self.smooth = nn.ConvTranspose2d(16, 16, 3, padding=1, groups=16)
        self.mix = nn.Conv2d(16, 16, 3, padding=1)
        self.out = nn.Conv2d(16, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.start(z).view(-1, 32, 4, 4)
        x = F.relu(self.norm1(self.up1(F.relu(x))))
        x = F.relu(self.smooth(F.relu(self.up2(x))))
        return torch.tanh(self.out(F.relu(self.mix(x))))


class Waveform(nn.Module):
    """1-D convolutions: dilated, gated, with residual and skip sums, and one way up again."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.inward = nn.Conv1d(1, width, 3, padding=1)
        self.gates = nn.ModuleList(
            nn.Conv1d(width, 2 * width, 3, padding=2**index, dilation=2**index) for index in range(3)
        )
        self.residuals = nn.ModuleList(nn.Conv1d(width, width, 1) for _ in range(3))
        self.skips = nn.ModuleList(nn.Conv1d(width, 24, 1) for _ in range(3))
        self.last = nn.Conv1d(width, 24, 1)
        self.norm = nn.BatchNorm1d(24)
        self.down = nn.Conv1d(24, 24, 4, stride=2, padding=1)
        self.up = nn.ConvTranspose1d(24, 16, 4, stride=2, padding=1)
        self.out = nn.Conv1d(16, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x, total = self.inward(x), 0
        for gate, residual, skip in zip(self.gates, self.residuals, self.skips, strict=True):
            value, door = gate(x).chunk(2, 1)
            y = torch.tanh(value) * torch.sigmoid(door)
            x, total = x + residual(y), total + skip(y)
        y = F.leaky_relu(self.down(F.elu(self.norm(total + self.last(x)))))
        return self.out(F.relu(self.up(y)))


class Volume(nn.Module):
    """3-D convolutions, as for video; the last step back up is a transposed one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv3d(2, 8, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm3d(8)
        self.spatial = nn.Conv3d(8, 16, (1, 3, 3), padding=(0, 1, 1))
        self.temporal = nn.Conv3d(16, 16, (3, 1, 1), padding=(1, 0, 0))
        self.up = nn.ConvTranspose3d(16, 8, 2, stride=2)
        self.out = nn.Conv3d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.max_pool3d(F.relu(self.norm(self.stem(x))), 2)
        return self.out(F.relu(self.up(F.relu(self.temporal(F.relu(self.spatial(x)))))))


def nameless() -> nn.Module:
    """nn.Sequential whose children have numbers only, nested."""
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU()),
        nn.MaxPool2d(2),
        nn.Sequential(nn.Conv2d(16, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(24 * 64, 32),
        nn.ReLU(),
        nn.Dropout(0.1),
        nn.Linear(32, 16),
        nn.Tanh(),
        nn.Linear(16, 5),
    )
