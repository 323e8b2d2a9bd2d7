"""Rows of the models written for the coverage table."""

from __future__ import annotations

import torch

from tests.coverage import written
from tests.coverage import written_sequences as plain
from tests.coverage.rows import Row, features, images, sequence, tokens


def _recommendation(batch: int, length: int) -> tuple[tuple[torch.Tensor, ...], dict]:
    return (torch.randn(batch, 8), torch.randint(30, (batch, 4)), torch.randint(30, (batch, 3))), {}


ROWS = (
    Row("densenet", written.DenseNet, images()),
    Row("shufflenet", written.ShuffleNet, images()),
    Row("squeeze-excite", written.SqueezeExcite, images()),
    Row("unet", written.UNet, images()),
    Row("grouped-depthwise", written.GroupedAndDepthwise, images(8)),
    Row(
        "generator",
        written.Generator,
        features(12),
        refused=(("transposed", "up1"), ("transposed", "up2"), ("depthwise", "smooth")),
    ),
    Row("waveform", written.Waveform, features(1, 32)),
    Row("volume", written.Volume, features(2, 4, 8, 8)),
    Row(
        "recurrent",
        plain.Recurrent,
        sequence(6),
        refused=(("recurrent", "lstm"), ("recurrent", "gru")),
    ),
    Row(
        "cells",
        plain.Cells,
        features(6),
        refused=(("recurrent", "lstm"), ("recurrent", "gru"), ("recurrent", "rnn")),
    ),
    Row(
        "recommender",
        plain.Recommender,
        _recommendation,
        refused=(("embedding", "bags.0"), ("embedding", "bags.1")),
    ),
    Row("text-bags", plain.TextBags, tokens(mask=False), refused=(("embedding", "bag"),)),
    Row(
        "tied-autoencoder",
        plain.TiedAutoencoder,
        lambda batch, length: ((torch.randint(40, (batch, length)),), {}),
        nothing=("parallel/*", "factorized/*", "doped/*"),
    ),
    Row("called-twice", plain.CalledTwice, sequence(12)),
    Row("raw-parameters", plain.RawParameters, images(8), refused=(("computed-weight", "third"),)),
    Row(
        "attention",
        plain.Attention,
        sequence(10),
        refused=(("computed-weight", "cross.in_proj_weight"),),
    ),
    Row("one-head", plain.OneHead, sequence(6)),
    Row("sizes-as-values", plain.SizesAsValues, sequence(6)),
    Row("mixer", plain.Mixer, images()),
    Row(
        "experts",
        plain.Experts,
        sequence(6),
        refused=(("computed-weight", "up"), ("computed-weight", "down")),
    ),
    Row("spectral", plain.Spectral, sequence(6), refused=(("fourier", ""),)),
    Row("nameless", written.nameless, images()),
)
