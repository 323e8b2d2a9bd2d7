from __future__ import annotations

import io
import sys
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from sparsify.archive import Kind, PickleConsentError, load, save, sniff, wrap
from sparsify.errors import UserError
from sparsify.graph.trace import trace
from sparsify.masks.module import SparseGraphModule
from tests.archive.hostile import archive, pickled, torch_pickled
from tests.models import MLP

FACTORY = "tests.models:MLP"


@pytest.fixture
def model() -> MLP:
    torch.manual_seed(0)
    return MLP().eval()


def test_content_decides_not_the_name(model: MLP, tmp_path: Path) -> None:
    x = torch.randn(3, 12)
    exported = archive(tmp_path / "a.pt2").rename(tmp_path / "really_pt2.pt")
    weights = tmp_path / "weights.pt2"
    torch.save(model.state_dict(), weights)
    assert sniff(exported) is Kind.EXPORTED and sniff(weights) is Kind.TORCH_ZIP
    assert isinstance(load(exported), SparseGraphModule)
    assert torch.equal(load(weights, factory=FACTORY)(x), model(x))


def test_weights_need_a_factory_and_run_nothing(model: MLP, tmp_path: Path) -> None:
    x = torch.randn(3, 12)
    files = [tmp_path / n for n in ("new.pt", "old.pt", "nested.pt", "w.safetensors")]
    torch.save(model.state_dict(), files[0])
    torch.save(model.state_dict(), files[1], _use_new_zipfile_serialization=False)
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, files[2])
    save_file(model.state_dict(), files[3])
    for file in files:
        with pytest.raises(UserError, match="factory"):
            load(file)
        assert torch.equal(load(file, factory=FACTORY)(x), model(x))
        assert torch.equal(load(file, factory=MLP)(x), model(x))


def test_weights_that_do_not_fit_say_which(model: MLP, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(model.state_dict(), file)
    with pytest.raises(UserError, match=r"head\.weight"):
        load(file, factory=lambda: MLP(classes=7))


@pytest.mark.parametrize(
    "factory", ["tests.models", "tests.models:Nothing", "no_such_package_x:f", "tests.models:F"]
)
def test_a_factory_that_is_none_is_a_user_error(factory: str, model: MLP, tmp_path: Path) -> None:
    file = tmp_path / "w.pt"
    torch.save(model.state_dict(), file)
    with pytest.raises(UserError, match="factory"):
        load(file, factory=factory)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickled_module_needs_consent(zipped: bool, model: MLP, tmp_path: Path) -> None:
    file = tmp_path / "model.pt"
    torch.save(model, file, _use_new_zipfile_serialization=zipped)
    with pytest.raises(PickleConsentError, match="trust_pickle"):
        load(file)
    x = torch.randn(3, 12)
    assert torch.equal(load(file, trust_pickle=True)(x), model(x))


@pytest.mark.parametrize("make", [pickled, torch_pickled])
def test_a_pickle_with_a_payload_does_not_run(make: object, tmp_path: Path) -> None:
    marker, file = tmp_path / "marker", tmp_path / "model.pt"
    file.write_bytes(make(marker))
    with pytest.raises(UserError):
        load(file)
    assert not marker.exists()


def test_a_class_that_cannot_be_imported_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "their_model.py").write_text("from torch import nn\nclass Net(nn.Linear):\n    pass\n")
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        import their_model

        torch.save(their_model.Net(2, 2), tmp_path / "model.pt")
    monkeypatch.delitem(sys.modules, "their_model")
    with pytest.raises(UserError, match="their_model"):
        load(tmp_path / "model.pt", trust_pickle=True)
    monkeypatch.chdir(tmp_path)
    assert type(load(tmp_path / "model.pt", trust_pickle=True)).__name__ == "Net"
    sys.modules.pop("their_model", None)


def test_torchscript_and_compiled_packages_are_told_apart_and_refused(model: MLP, tmp_path: Path) -> None:
    script = tmp_path / "script.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(model, torch.randn(1, 12)), script)
    compiled = tmp_path / "compiled.pt2"
    writer = torch._C.PyTorchFileWriter(str(compiled))
    for name, content in (("archive_format", b"pt2"), ("data/aotinductor/model/m.so", b"\x7fELF")):
        writer.write_record(name, content, len(content))
    writer.write_end_of_file()
    for file, word in ((script, "TorchScript"), (compiled, "AOTInductor")):
        for consent in (False, True):
            with pytest.raises(UserError, match=word):
                load(file, trust_pickle=consent)


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"PK\x03\x04 not a zip", b"\x80\x02broken", b"\x02" + bytes(9)]
)
def test_a_file_that_is_no_model_is_a_user_error(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.pt2"
    file.write_bytes(content)
    with pytest.raises(UserError):
        load(file)
    with pytest.raises(UserError):
        load(file, trust_pickle=True)


def test_a_missing_file_is_a_user_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load(tmp_path / "none.pt2")


def test_cut_off_files_are_user_errors(model: MLP, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt2"
    save(wrap(trace(model, (torch.randn(2, 12),))), whole)
    torch.save(model.state_dict(), tmp_path / "w.pt")
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    for source in (whole, tmp_path / "w.pt", tmp_path / "w.safetensors"):
        content = source.read_bytes()
        for share in (0.1, 0.5, 0.9, 0.999):
            file = tmp_path / "cut.pt2"
            file.write_bytes(content[: int(len(content) * share)])
            with pytest.raises(UserError):
                load(file, factory=FACTORY)


def test_flipped_bytes_never_raise_anything_but_our_errors(model: MLP, tmp_path: Path) -> None:
    whole = tmp_path / "whole.pt2"
    save(wrap(trace(model, (torch.randn(2, 12),))), whole)
    content = whole.read_bytes()
    generator = torch.Generator().manual_seed(0)
    refused = 0
    for position in torch.randint(0, len(content), (25,), generator=generator).tolist():
        damaged = bytearray(content)
        damaged[position] ^= 0xFF
        file = tmp_path / "damaged.pt2"
        file.write_bytes(bytes(damaged))
        try:
            load(file)
        except UserError:
            refused += 1
    assert refused > 0


def test_an_archive_with_fixed_shapes_keeps_them_and_says_so(model: MLP, tmp_path: Path) -> None:
    file = tmp_path / "fixed.pt2"
    torch.export.save(torch.export.export(model, (torch.randn(3, 12),)), file)
    with pytest.warns(UserWarning, match="fixed"):
        loaded = load(file)
    assert loaded.sparsify.inputs.args[0].dynamic == ()
    assert loaded.sparsify.plan is None


def test_an_archive_exported_in_training_mode_trains(tmp_path: Path) -> None:
    from tests.models import ResNet

    torch.manual_seed(0)
    model = ResNet(dropout=0.0).train()
    buffer = io.BytesIO()
    shapes = ({0: torch.export.Dim.AUTO},)
    torch.export.save(torch.export.export(model, (torch.randn(3, 1, 8, 8),), dynamic_shapes=shapes), buffer)
    (tmp_path / "m.pt2").write_bytes(buffer.getvalue())
    loaded = load(tmp_path / "m.pt2")
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(loaded(x), model.eval()(x))
    torch.testing.assert_close(loaded.train()(x), model.train()(x))
    torch.testing.assert_close(loaded.bn.running_mean, model.bn.running_mean)


def test_a_decomposed_archive_becomes_modules(tmp_path: Path) -> None:
    from tests.models import ResNet

    model = ResNet().eval()
    shapes = ({0: torch.export.Dim.AUTO},)
    program = torch.export.export(model, (torch.randn(3, 1, 8, 8),), dynamic_shapes=shapes)
    torch.export.save(program.run_decompositions(), tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2")
    x = torch.randn(5, 1, 8, 8)
    torch.testing.assert_close(loaded(x), model(x))
    kinds = {type(module) for module in loaded.modules()}
    assert {torch.nn.Conv2d, torch.nn.BatchNorm2d, torch.nn.Linear} <= kinds


def test_an_archive_that_returns_a_model_output_loads(tmp_path: Path) -> None:
    from tests.models import MODELS

    entry = MODELS["llama"]
    model = entry.model()
    model.config.use_cache = False
    args, kwargs = entry.example(2, 8)
    shapes = {name: {0: torch.export.Dim.AUTO, 1: torch.export.Dim.AUTO} for name in kwargs}
    torch.export.save(torch.export.export(model, args, kwargs, dynamic_shapes=shapes), tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2")
    _, kwargs = entry.example(3, 11)
    expected = model(**kwargs)
    assert torch.equal(loaded(**kwargs).logits, expected.logits)
    save(loaded, tmp_path / "again.pt2")
    again = load(tmp_path / "again.pt2")(**kwargs)
    assert type(again) is type(expected) and torch.equal(again.logits, expected.logits)
