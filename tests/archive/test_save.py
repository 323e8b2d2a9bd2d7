from __future__ import annotations

import copy
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch.utils._pytree import tree_leaves

from sparsify.archive import load, save, wrap
from sparsify.errors import SparsifyError, UserError
from sparsify.graph.canonical import ties_of
from sparsify.graph.trace import trace
from sparsify.masks.module import SparseGraphModule
from sparsify.masks.state import masked_parameters, set_mask
from tests.models import MLP, MODELS, ResNet


@dataclass(frozen=True)
class Saved:
    name: str
    path: Path
    module: SparseGraphModule
    loaded: SparseGraphModule


@pytest.fixture(scope="module", params=["mlp", "resnet", "bert", "gpt2"])
def saved(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    entry = MODELS[request.param]
    module = wrap(trace(entry.model(), *entry.example(2, 8)))
    path = tmp_path_factory.mktemp("saved") / "m.pt2"
    save(module, path)
    return Saved(request.param, path, module, load(path))


def test_a_round_trip_is_equal_bit_for_bit(saved: Saved) -> None:
    args, kwargs = MODELS[saved.name].example(3, 11)
    for training in (False, True):
        saved.module.train(training), saved.loaded.train(training)
        torch.manual_seed(5)
        expected = saved.module(*args, **kwargs)
        torch.manual_seed(5)
        actual = saved.loaded(*args, **kwargs)
        assert type(actual) is type(expected)
        pairs = list(zip(tree_leaves(actual), tree_leaves(expected), strict=True))
        assert pairs and all(torch.equal(a, b) for a, b in pairs)


def test_record_keys_ties_and_modules_come_back(saved: Saved) -> None:
    assert saved.loaded.sparsify == saved.module.sparsify
    assert set(saved.loaded.state_dict()) == set(saved.module.state_dict())
    assert ties_of(saved.loaded) == ties_of(saved.module) == saved.module.sparsify.ties
    assert leaves(saved.loaded) == leaves(saved.module)


def leaves(module: SparseGraphModule) -> dict[str, str]:
    return {name: repr(child) for name, child in module.named_modules() if not list(child.children())}


def test_an_archive_needs_neither_our_package_nor_transformers(saved: Saved) -> None:
    """torch.export.load reads it in a fresh process, and returns plain containers."""
    if saved.name != "bert":
        return
    code = (
        "import sys, torch\n"
        f"program = torch.export.load({str(saved.path)!r})\n"
        "out = program.module()(input_ids=torch.zeros(2, 8, dtype=torch.long), "
        "attention_mask=torch.ones(2, 8, dtype=torch.long))\n"
        "assert type(out) is dict, type(out)\n"
        "assert 'transformers' not in sys.modules and 'sparsify' not in sys.modules\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=saved.path.parent)
    assert done.returncode == 0, done.stderr


def test_batchnorm_momentum_comes_back(tmp_path: Path) -> None:
    model = ResNet()
    model.bn.momentum, model.layer1.bn1.momentum, model.layer1.bn2.eps = None, 0.3, 1e-3
    module = wrap(trace(model, (torch.randn(2, 1, 8, 8),)))
    save(module, tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2")
    assert loaded.bn.momentum is None
    assert loaded.layer1.bn1.momentum == 0.3
    assert loaded.layer1.bn2.eps == 1e-3


def masked_mlp() -> SparseGraphModule:
    torch.manual_seed(0)
    module = wrap(trace(MLP(), (torch.randn(2, 12),)))
    weight = module.get_parameter("inner.0.weight")
    set_mask(module.get_submodule("inner.0"), "weight", weight.abs() > weight.abs().median())
    return module


def test_masks_come_back_and_are_in_force(tmp_path: Path) -> None:
    module = masked_mlp()
    save(module, tmp_path / "m.pt2")
    loaded = load(tmp_path / "m.pt2")
    entries = masked_parameters(loaded)
    assert list(entries) == ["inner.0.weight"]
    entry = entries["inner.0.weight"]
    assert torch.equal(entry.mask, masked_parameters(module)["inner.0.weight"].mask)
    assert 0 < entry.density < 1
    loaded.train()(torch.randn(4, 12)).square().sum().backward()
    assert entry.param.grad is not None and entry.param.grad.abs().sum() > 0
    assert torch.count_nonzero(entry.param.grad[~entry.mask]) == 0


def test_a_weight_outside_its_mask_is_not_saved(tmp_path: Path) -> None:
    module = masked_mlp()
    with torch.no_grad():
        module.get_parameter("inner.0.weight").fill_(1.0)
    with pytest.raises(SparsifyError, match=r"inner\.0\.weight"):
        save(module, tmp_path / "m.pt2")
    assert not list(tmp_path.iterdir())


def test_saving_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    module = masked_mlp().train()
    before = copy.deepcopy(module.state_dict())
    save(module, tmp_path / "m.pt2")
    assert module.training and module.get_submodule("inner.2").training
    assert all(torch.equal(before[key], value) for key, value in module.state_dict().items())
    module(torch.randn(4, 12)).sum().backward()


def test_only_models_of_ours_are_saved(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="MLP"):
        save(MLP(), tmp_path / "m.pt2")


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    resource = pytest.importorskip("resource", reason="limits on file sizes exist on POSIX systems only")
    path = tmp_path / "m.pt2"
    save(masked_mlp(), path)
    before = path.read_bytes()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for size in (0, len(before) // 2, len(before) - 1):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            with pytest.raises(UserError, match=r"cannot write .*m\.pt2: .*File too large"):
                save(masked_mlp(), path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["m.pt2"]


def test_a_device_without_space_is_a_user_error() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("this system has no /dev/full")
    with pytest.raises(UserError, match="cannot write"):
        save(masked_mlp(), "/dev/full/m.pt2")


def test_a_directory_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="directory"):
        save(masked_mlp(), tmp_path)


def test_a_loaded_model_can_be_traced_saved_and_copied_again(tmp_path: Path) -> None:
    module = masked_mlp()
    save(module, tmp_path / "a.pt2")
    loaded = load(tmp_path / "a.pt2")
    save(copy.deepcopy(loaded), tmp_path / "b.pt2")
    again = load(tmp_path / "b.pt2")
    x = torch.randn(3, 12)
    assert torch.equal(again(x), module.eval()(x))
    spec = loaded.sparsify.inputs
    args, kwargs = spec.example()
    traced = trace(loaded, args, kwargs, dynamic_shapes=spec.dynamic_shapes())
    assert torch.equal(traced.module(x), module(x))
    assert list(masked_parameters(wrap(traced))) == ["inner.0.weight"]


def test_what_the_graph_does_not_read_survives_copies_and_archives(tmp_path: Path) -> None:
    model = MLP()
    model.unused = torch.nn.Linear(3, 3)
    model.register_parameter("free", torch.nn.Parameter(torch.randn(4)))
    module = copy.deepcopy(wrap(trace(model, (torch.randn(2, 12),))))
    assert set(module.state_dict()) == set(model.state_dict())
    assert module.unused.weight is not model.unused.weight
    save(module, tmp_path / "m.pt2")
    state = load(tmp_path / "m.pt2").state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())
