"""Dense checkpoints into rewritten models and back, and where each parameter comes from."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

import sparsify
from sparsify.errors import UserError
from sparsify.masks import masked_parameters

LINEAR = (
    {"family": "masked", "sparsity": 0.0},
    {"family": "wide", "scope": "inner", "sparsity": 0.5},
    {"family": "parallel", "branch_nonlinearity": "none", "sparsity": 0.5},
)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 16)
        self.norm = nn.LayerNorm(16)
        self.up, self.down = nn.Linear(16, 32), nn.Linear(32, 16)
        self.head = nn.Linear(16, 9, bias=False)
        self.head.weight = self.table.weight

    def forward(self, ids):
        x = self.table(ids)
        return self.head(x + self.down(self.up(self.norm(x)).relu()))


def _model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    return Model().eval()


IDS = torch.arange(8).reshape(2, 4)


def _made(**options) -> torch.fx.GraphModule:
    return sparsify.transform(_model(), (IDS,), **options).eval()


def _distance(one: nn.Module, other: nn.Module) -> float:
    with torch.no_grad():
        return float((one(IDS) - other(IDS)).abs().max())


@pytest.mark.parametrize("options", LINEAR, ids=lambda options: options["family"])
def test_a_checkpoint_goes_in_and_comes_back(options):
    made, dense = _made(**options), _model(1)
    sparsify.load_dense(made, dense.state_dict(), new_connections=0)
    assert _distance(made, dense) < 1e-4
    back = sparsify.dense_state_dict(made)
    wanted = dense.state_dict()
    assert set(back) == set(wanted)
    assert all(torch.allclose(back[key], wanted[key], atol=1e-6) for key in wanted)
    assert back["head.weight"] is back["table.weight"]
    assert made.get_parameter("head.weight") is made.get_parameter("table.weight")


@pytest.mark.parametrize("options", LINEAR[1:], ids=lambda options: options["family"])
def test_loading_is_what_preserve_does(options):
    loaded = _made(**options, distribution="as-dense", **_no_heads(options))
    sparsify.load_dense(loaded, _model(1).state_dict(), seed=3)
    kept = sparsify.transform(_model(1), (IDS,), init="preserve", seed=3, **options)
    assert all(torch.equal(value, kept.state_dict()[key]) for key, value in loaded.state_dict().items())
    assert loaded.sparsify.weights == "kept"
    assert loaded.sparsify.preserve["layers"] == kept.sparsify.preserve["layers"]


def _no_heads(options) -> dict[str, bool]:
    return {"heads": False} if options["family"] == "wide" else {}


def test_a_doped_layer_comes_back_as_its_product():
    made = _made(family="doped", sparsity=0.5, init="preserve")
    back = sparsify.dense_state_dict(made)
    dense = _model()
    dense.load_state_dict(back)
    assert _distance(made, dense) < 1e-4


def test_loading_survives_an_archive(tmp_path):
    sparsify.save(_made(**LINEAR[1]), tmp_path / "model.pt2")
    made, dense = sparsify.load(tmp_path / "model.pt2"), _model(1)
    counts = {name: int(entry.mask.sum()) for name, entry in masked_parameters(made).items()}
    sparsify.load_dense(made, dense.state_dict(), new_connections=0)
    assert _distance(made, dense) < 1e-4
    assert counts == {name: int(entry.mask.sum()) for name, entry in masked_parameters(made).items()}


def test_transposed_weights_come_back_as_the_user_had_them():
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    config = transformers.GPT2Config(
        vocab_size=20,
        n_embd=16,
        n_layer=1,
        n_head=2,
        n_positions=8,
        use_cache=False,
        bos_token_id=0,
        eos_token_id=0,
    )
    torch.manual_seed(0)
    model = transformers.GPT2Model(config).eval()
    made = sparsify.transform(
        model, (IDS,), init="preserve", scope="inner", sparsity=0.5, new_connections=0
    ).eval()
    back, wanted = sparsify.dense_state_dict(made), model.state_dict()
    assert set(back) == set(wanted)
    assert all(torch.equal(back[key], wanted[key]) for key in wanted)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda state: state.pop("up.weight"), r"lacks up\.weight"),
        (lambda state: state.update({"upp.weight": state["up.weight"]}), r"no key 'upp\.weight'.*up\.weight"),
        (lambda state: state.update({"up.weight": torch.zeros(3, 3)}), r"'up\.weight' has shape \(3, 3\)"),
        (lambda state: state["up.weight"].fill_(float("nan")), r"'up\.weight' holds NaN"),
    ],
)
def test_checkpoints_that_do_not_fit_are_named(change, reason):
    made, state = _made(**LINEAR[1]), {key: value.clone() for key, value in _model(1).state_dict().items()}
    before = {key: value.clone() for key, value in made.state_dict().items()}
    change(state)
    with pytest.raises(UserError, match=reason):
        sparsify.load_dense(made, state)
    assert all(torch.equal(value, before[key]) for key, value in made.state_dict().items())


def test_one_name_of_a_tie_is_enough():
    made, state = _made(**LINEAR[1]), dict(_model(1).state_dict())
    del state["head.weight"]
    sparsify.load_dense(made, state, new_connections=0)
    assert _distance(made, _model(1)) < 1e-4


def test_trained_new_units_leave_no_dense_model():
    made = _made(family="wide", scope="inner", sparsity=0.5)
    with pytest.raises(UserError, match="'down' units that are new feed old ones"):
        sparsify.dense_state_dict(made)


def test_a_norm_over_new_units_leaves_no_dense_model():
    made = _made(family="wide", scope="all", width=2.0, init="preserve", new_connections=0)
    with pytest.raises(UserError, match="norm at 'norm' reduces"):
        sparsify.dense_state_dict(made)


def test_nonlinear_branches_leave_no_dense_model_and_take_none():
    made = _made(family="parallel", sparsity=0.5, only="up")
    with pytest.raises(UserError, match=r"'up'.*nonlinearity"):
        sparsify.dense_state_dict(made)
    with pytest.raises(UserError, match="'up' is parallel with a nonlinearity"):
        sparsify.load_dense(made, _model(1).state_dict())


def test_a_plain_module_has_no_record():
    with pytest.raises(UserError, match="no record"):
        sparsify.load_dense(nn.Linear(2, 2), {})


class TestExplain:
    def test_a_widened_weight(self):
        made = _made(family="wide", scope="inner", sparsity=0.5)
        (row,) = sparsify.explain(made, "up.weight")["parameters"]
        assert (row["old"], row["how"]) == ("up.weight", "widened")
        assert row["shape"] == {"old": [32, 16], "new": list(made.up.weight.shape)}
        assert row["mask"]["active"] == int(made.up.weight_mask.sum())
        assert {group["axis"]: group["size"] for group in row["groups"]} == {0: 32, 1: 16}
        assert row["scaling"]["adam_lr"] == made.sparsify.scaling["up.weight"].adam_lr
        assert row["plan"]["family"] == "wide"
        assert row["plan"]["reason"]
        assert json.loads(json.dumps(row)) == row

    def test_an_old_name_says_what_became_of_it(self):
        made = _made(family="parallel", branch_nonlinearity="none", sparsity=0.5)
        rows = sparsify.explain(made, "up.weight")["parameters"]
        assert [row["new"] for row in rows] == ["up.branches.0.weight", "up.branches.1.weight"]
        assert {row["how"] for row in rows} == {"branched"}
        assert sparsify.explain(made, "up.branches.1.weight")["parameters"] == rows[1:]

    def test_ties_and_refusals(self):
        made = _made(family="masked", sparsity=0.5)
        (row,) = sparsify.explain(made, "table.weight")["parameters"]
        assert row["ties"] == ["head.weight"]
        assert row["mask"] is None
        assert row["refusals"]

    def test_a_module_stands_for_its_parameters(self):
        rows = sparsify.explain(_made(**LINEAR[1]), "down")["parameters"]
        assert [row["new"] for row in rows] == ["down.weight", "down.bias"]

    def test_unknown_names_get_near_matches(self):
        with pytest.raises(UserError, match=r"'up\.wieght'; near matches: up\.weight"):
            sparsify.explain(_made(**LINEAR[1]), "up.wieght")
