from __future__ import annotations

import json
from pathlib import Path

import pytest

from sparsify.runtime import doctor, library


def _by_name(report: dict) -> dict[str, dict]:
    return {check["name"]: check for check in report["checks"]}


def test_a_sound_installation_passes_every_check():
    report = doctor()
    json.dumps(report)
    failed = [check for check in report["checks"] if not check["ok"]]
    assert failed == []
    assert report["ok"]
    names = {"python", "onnxruntime", "torch", "library", "operators", "self-test", "cpu", "kernel", "cuda"}
    assert set(_by_name(report)) == names


def test_a_missing_library_is_found_and_advised_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSIFY_LIBRARY", str(tmp_path / "nowhere.so"))
    report = doctor()
    assert not report["ok"]
    checks = _by_name(report)
    for name in ("library", "operators", "self-test"):
        assert not checks[name]["ok"]
        assert checks[name]["advice"]
    assert checks["python"]["ok"]


def test_a_file_that_is_no_library_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    fake = tmp_path / "libsparsify_ort.so"
    fake.write_bytes(b"not a library")
    monkeypatch.setenv("SPARSIFY_LIBRARY", str(fake))
    checks = _by_name(doctor())
    assert not checks["library"]["ok"]
    assert str(fake) in checks["library"]["detail"]
    assert not checks["operators"]["ok"]


def test_an_unknown_forced_kernel_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSIFY_KERNEL", "abacus")
    checks = _by_name(doctor())
    assert not checks["kernel"]["ok"]
    assert "scalar" in checks["kernel"]["advice"]
    assert not checks["self-test"]["ok"]


def test_an_unknown_tuning_is_found(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSIFY_TUNE_FOR", "abacus")
    checks = _by_name(doctor())
    assert not checks["kernel"]["ok"]
    assert "sapphirerapids" in checks["kernel"]["advice"]


def test_the_scalar_kernel_can_be_forced(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("SPARSIFY_KERNEL", "scalar")
    report = doctor()
    assert report["ok"]
    assert library.selected_kernel() == "scalar"
    assert "forced" in _by_name(report)["kernel"]["detail"]
