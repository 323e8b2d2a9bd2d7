"""What `sparsify lower` and `sparsify bench` say of attention."""

from __future__ import annotations

import json

import onnx

from tests.lowering.attention_graphs import PLAIN
from tests.lowering.graphs import operators


def test_lower_says_what_became_of_attention(run, tmp_path):
    source, target = tmp_path / "source.onnx", tmp_path / "sparse.onnx"
    onnx.save(PLAIN.build(), source)
    data = json.loads(run("lower", source, "-o", target, "--layout", "csr", "--format", "json").out)
    (entry,) = data["attention"]
    assert entry["node"] == "p_Softmax" and entry["heads"] == 2 and entry["fused"]
    assert "attention fused: p_Softmax" in run("lower", source, "-o", target, "--layout", "csr").out
    left = run("lower", source, "-o", target, "--layout", "dense").out
    assert "attention left as it was: p_Softmax" in left
    assert "Softmax" in operators(onnx.load(target))


def test_bench_profiles_a_file_with_attention_and_makes_its_dense_twin(run, tmp_path):
    source, target = tmp_path / "source.onnx", tmp_path / "sparse.onnx"
    onnx.save(PLAIN.build(), source)
    run("lower", source, "-o", target, "--layout", "csr")
    words = ("bench", target, "--batch", 2, "--threads", 1, "--duration", 0.05, "--warmup", 1, "--profile")
    data = json.loads(run(*words, "--format", "json").out)
    assert data["baseline"]["kind"] == "zero-filled"
    assert any(row["op"] == "Attention" for row in data["profile"])
