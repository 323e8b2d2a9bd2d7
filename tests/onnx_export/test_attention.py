"""Attention of a model from a library, through export and lowering."""

from __future__ import annotations

import onnx
import pytest
import torch

import sparsify
from sparsify.runtime import Session
from tests.models import MODELS
from tests.onnx_export.test_writer import pruned

pytest.importorskip("transformers")


def test_berts_attention_becomes_one_node_a_layer_at_any_batch_and_length(tmp_path):
    model = pruned(MODELS["bert"].model())
    torch.manual_seed(0)
    _, inputs = MODELS["bert"].example(2, 12)
    plain, path = tmp_path / "plain.onnx", tmp_path / "sparse.onnx"
    sparsify.export(model, plain, kwargs=inputs, dense=True)
    report = sparsify.lower(plain, path, layout="csr")
    kinds = [node.op_type for node in onnx.load(path).graph.node]
    assert [entry.fused for entry in report.attention] == [True, True]
    assert kinds.count("Attention") == 2 and "Softmax" not in kinds
    for batch, length in ((1, 7), (3, 40)):
        _, other = MODELS["bert"].example(batch, length)
        feeds = {name: value.numpy() for name, value in other.items()}
        got, want = Session(path).run(feeds), Session(plain).run(feeds)
        assert all(abs(got[name] - want[name]).max() < 1e-5 for name in want)
