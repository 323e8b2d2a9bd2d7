"""`sparsify lower --chains`: convolutions that feed each other, as one node."""

from __future__ import annotations

import json

import onnx
import pytest

from sparsify.runtime.conv_chain import OPERATOR
from tests.lowering.graphs import operators
from tests.lowering.test_chains import network


@pytest.fixture
def source(tmp_path):
    onnx.save(network([("a", "x"), ("b", "a"), ("y", "b")]), tmp_path / "source.onnx")
    return tmp_path / "source.onnx"


def test_every_layer_names_its_chain(run, source, tmp_path):
    words = ("lower", source, "-o", tmp_path / "out.onnx", "--layout", "csr")
    data = json.loads(run(*words, "--chains", "--format", "json").out)
    assert operators(onnx.load(tmp_path / "out.onnx")) == [OPERATOR]
    assert [row["chain"] for row in data["layers"]] == ["a_Conv..y_Conv"] * 3
    assert "3 of the sparse ones run together, as 1 node(s)" in run(*words, "--chains").out
    assert "run together" not in run(*words, "--no-chains").out
    assert OPERATOR not in operators(onnx.load(tmp_path / "out.onnx"))


def test_chains_are_no_part_of_what_if(run, source):
    ended = run("lower", source, "--what-if", "0.9", "--chains", code=2)
    assert "what-if times every node by itself" in ended.err
