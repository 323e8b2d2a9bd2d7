"""The classifier: MiniLM's encoder, the mean of its last states over tokens, and a linear head."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from benchmarks.minilm_finetune.source import VOCABULARY, weights_folder

WORDS = "encoder.embeddings.word_embeddings.weight"


class Classifier(nn.Module):
    """Logits over classes.

    Args:
        encoder: A BertModel without pooler.
        classes: Number of classes.
    """

    def __init__(self, encoder: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.encoder = encoder
        self.head = nn.Linear(width, classes)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        weights = attention_mask[..., None].to(states.dtype)
        return self.head((states * weights).sum(1) / weights.sum(1).clamp(min=1.0))


def classifier(classes: int, seed: int, *, pretrained: bool) -> Classifier:
    """The classifier; not pretrained, it is a tiny one with random weights. The seed draws the head."""
    from transformers import BertConfig, BertModel

    torch.manual_seed(seed)
    if pretrained:
        encoder = BertModel.from_pretrained(weights_folder(), add_pooling_layer=False)
    else:
        config = BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=64,
        )
        encoder = BertModel(config, add_pooling_layer=False)
    return Classifier(encoder, encoder.config.hidden_size, classes)
