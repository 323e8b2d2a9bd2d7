"""Measured times survive a process, and nothing that happens to their file stops a lowering."""

from __future__ import annotations

import dataclasses
import json
import warnings
from pathlib import Path

import numpy as np
import pytest

from sparsify.lowering.cost import Machine, storage
from sparsify.lowering.graph import Graph
from sparsify.lowering.matching import match_all
from sparsify.lowering.tuning_cache import TuningCache, cache_folder, describe, environment_of
from tests.lowering.graphs import model, node, sparse_array

ABOUT = {"weight": [3, 4], "density": 0.1}
SECONDS = {"dense": 2e-5, "csr": 1e-5}


def test_times_are_found_by_another_process_and_only_in_the_same_environment(tmp_path):
    TuningCache({"threads": 1}, tmp_path).put(ABOUT, SECONDS)
    assert TuningCache({"threads": 1}, tmp_path).get(ABOUT, {"dense", "csr"}) == SECONDS
    assert TuningCache({"threads": 2}, tmp_path).get(ABOUT, {"dense", "csr"}) is None
    assert TuningCache({"threads": 1}, tmp_path).get(ABOUT | {"density": 0.2}, {"dense"}) is None


def test_a_side_that_was_not_measured_makes_the_entry_useless(tmp_path):
    cache = TuningCache({}, tmp_path)
    cache.put(ABOUT, SECONDS)
    assert cache.get(ABOUT, {"dense", "csr", "blocks-4"}) is None
    assert cache.get(ABOUT, {"csr"}) == {"csr": 1e-5}


def test_two_writers_keep_each_others_entries(tmp_path):
    first, second = TuningCache({}, tmp_path), TuningCache({}, tmp_path)
    first.put(ABOUT, SECONDS)
    second.put({"other": 1}, SECONDS)
    both = TuningCache({}, tmp_path)
    assert both.get(ABOUT, {"dense"})
    assert both.get({"other": 1}, {"dense"})
    assert len(list(tmp_path.iterdir())) == 1


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe",
        b"[]",
        b'{"format": 99, "nodes": {}}',
        b'{"format": 1, "nodes": {"a": {"about": {}, "seconds": {"dense": -1.0}}}}',
        b'{"format": 1, "nodes": {"a": {"about": {}, "seconds": {"dense": NaN}}}}',
        b'{"format": 1, "nodes": {"a": 3}}',
    ],
)
def test_a_damaged_file_is_a_warning_and_is_written_anew(tmp_path, content):
    TuningCache({}, tmp_path).put(ABOUT, SECONDS)
    (path,) = tmp_path.iterdir()
    path.write_bytes(content)
    with pytest.warns(UserWarning, match="damaged"):
        cache = TuningCache({}, tmp_path)
    assert cache.get(ABOUT, {"dense"}) is None
    cache.put(ABOUT, SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert TuningCache({}, tmp_path).get(ABOUT, {"dense"})


def test_a_folder_that_cannot_be_made_is_one_warning(tmp_path):
    (tmp_path / "file").write_text("", encoding="utf-8")
    with pytest.warns(UserWarning, match="not kept|damaged"):
        cache = TuningCache({}, tmp_path / "file" / "folder")
        cache.put(ABOUT, SECONDS)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        cache.put({"other": 1}, SECONDS)
    assert cache.get(ABOUT, {"dense"})


def test_the_folder_follows_the_environment(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    monkeypatch.delenv("SPARSIFY_CACHE", raising=False)
    assert cache_folder() == tmp_path / "xdg" / "sparsify"
    monkeypatch.setenv("SPARSIFY_CACHE", str(tmp_path / "own"))
    assert cache_folder() == tmp_path / "own"
    monkeypatch.delenv("SPARSIFY_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", lambda: tmp_path / "home")
    assert cache_folder() == tmp_path / "home" / ".cache" / "sparsify"


def test_the_environment_names_what_a_time_depends_on():
    one, two = environment_of(Machine("avx2", 1)), environment_of(Machine("avx2", 2))
    assert set(one) == {"cpu", "kernel", "tuned_for", "threads", "library", "onnxruntime"}
    assert one != two
    json.dumps(one)


def test_a_key_ignores_values_and_tells_patterns_and_fusions_apart():
    weight = sparse_array(64, 48, density=0.2)
    built = model([node("MatMul", ["x", "w"], "y")], {"x": (5, 64)}, {"y": (5, 48)}, {"w": weight})
    graph = Graph(built)
    (match,) = match_all(graph)

    def key(candidate, shapes=None):
        return json.dumps(describe(graph, candidate, storage(candidate), shapes or {"x": (5, 64)}))

    same = dataclasses.replace(match, weight=match.weight * 3)
    assert key(same) == key(match)
    blocks = np.kron(sparse_array(12, 64, density=0.2), np.ones((4, 1), np.float32))
    uneven = np.where(np.arange(48)[:, None] < 10, np.float32(1), np.float32(0)) * np.ones((48, 64), "f")
    others = [
        dataclasses.replace(match, weight=blocks),
        dataclasses.replace(match, weight=uneven),
        dataclasses.replace(match, activation="relu"),
        dataclasses.replace(match, bias=np.ones(48, np.float32)),
    ]
    assert len({key(match), key(match, {"x": (6, 64)}), *map(key, others)}) == 6
