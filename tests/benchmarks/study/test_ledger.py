"""A ledger reads back what it wrote, whatever a kill left at its end."""

from __future__ import annotations

import json

import pytest

from benchmarks.study.ledger import Ledger
from tests.benchmarks.study.counting import Inner, Sum

RUN = Sum(Inner("b", (0.25, 0.5)), 2.0, 1)


def test_runs_come_back_equal_with_their_results(tmp_path):
    path = tmp_path / "runs.jsonl"
    ledger = Ledger(Sum, path)
    ledger.add(RUN, {"value": 2.5, "revision": "abc"})
    ledger.add(Sum(), {"value": None})
    again = Ledger(Sum, path)
    assert list(again.items()) == [(RUN, {"value": 2.5, "revision": "abc"}), (Sum(), {"value": None})]
    assert RUN in again
    assert Sum(seed=7) not in again


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_line_that_a_kill_cut_is_dropped_and_later_ones_stand_alone(tmp_path, cut):
    path = tmp_path / "runs.jsonl"
    first = Ledger(Sum, path)
    first.add(RUN, {"value": 1.0})
    whole = path.read_text()
    first.add(Sum(), {"value": 2.0})
    path.write_text(path.read_text()[: len(whole) + cut])
    again = Ledger(Sum, path)
    assert [run for run, _ in again.items()] == [RUN]
    again.add(Sum(seed=3), {"value": 3.0})
    assert [run for run, _ in Ledger(Sum, path).items()] == [RUN, Sum(seed=3)]


def test_reading_leaves_the_file_alone(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text('{"inner": {"na')
    assert len(Ledger(Sum, path)) == 0
    assert path.read_text() == '{"inner": {"na'


def test_settings_that_came_later_take_their_defaults(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({"inner": {"name": "b"}, "value": 1.0}) + "\n")
    assert list(Ledger(Sum, path).items()) == [(Sum(Inner("b")), {"value": 1.0})]


def test_results_may_not_hide_settings_nor_be_infinite(tmp_path):
    ledger = Ledger(Sum, tmp_path / "runs.jsonl")
    with pytest.raises(ValueError, match="rate"):
        ledger.add(Sum(), {"rate": 1.0})
    with pytest.raises(ValueError, match="Out of range float"):
        ledger.add(Sum(), {"value": float("nan")})
    assert not (tmp_path / "runs.jsonl").exists()


def test_a_line_of_something_else_is_named(tmp_path):
    path = tmp_path / "runs.jsonl"
    path.write_text(json.dumps({"inner": 3, "value": 1.0}) + "\n[1]\n")
    with pytest.raises(ValueError, match="line 1"):
        Ledger(Sum, path)
