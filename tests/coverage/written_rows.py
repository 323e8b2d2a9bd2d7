"""Rows of the models written for the coverage table."""

from __future__ import annotations

import torch

from tests.coverage import written
from tests.coverage.rows import Row, features, images, sequence, tokens


def _recommendation(batch: int, length: int) -> tuple[tuple[torch.Tensor, ...], dict]:
    return (torch.randn(batch, 8), torch.randint(30, (batch, 4)), torch.randint(30, (batch, 3))), {}


ROWS = (
    Row("densenet", written.DenseNet, images()),
    Row("shufflenet", written.ShuffleNet, images()),
    Row("squeeze-excite", written.SqueezeExcite, images()),
    Row("unet", written.UNet, images()),
    Row("grouped-depthwise", written.GroupedAndDepthwise, images(8)),
    Row("generator", written.Generator, features(12)),
    Row("waveform", written.Waveform, features(1, 32)),
    Row("volume", written.Volume, features(2, 4, 8, 8)),
    Row("recurrent", written.Recurrent, sequence(6)),
    Row("cells", written.Cells, features(6)),
    Row("recommender", written.Recommender, _recommendation),
    Row("text-bags", written.TextBags, tokens(mask=False)),
    Row("tied-autoencoder", written.TiedAutoencoder, lambda b, n: ((torch.randint(40, (b, n)),), {})),
    Row("called-twice", written.CalledTwice, sequence(12)),
    Row("raw-parameters", written.RawParameters, images(8)),
    Row("attention", written.Attention, sequence(10)),
    Row("one-head", written.OneHead, sequence(6)),
    Row("sizes-as-values", written.SizesAsValues, sequence(6)),
    Row("mixer", written.Mixer, images()),
    Row("experts", written.Experts, sequence(6)),
    Row("spectral", written.Spectral, sequence(6)),
    Row("nameless", written.nameless, images()),
)
