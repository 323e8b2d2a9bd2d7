"""`transform --print-after`: the readable graph on stderr, after one pass or all."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from sparsify import api, commands
from sparsify._print_after import printer
from sparsify.archive import wrap
from sparsify.errors import UserError
from sparsify.passes import PIPELINE


@pytest.fixture(scope="module")
def model_file(tmp_path_factory):
    layers = [nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 2)]
    path = tmp_path_factory.mktemp("model") / "model.pt2"
    api.save(wrap(api.trace(nn.Sequential(*layers), (torch.zeros(2, 4),))), path)
    return path


def transform(path, tmp_path, **options):
    said = []
    plan_options = {"family": "masked", "sparsity": 0.5}
    fixed = {"plan_file": None, "plan_only": False, "init": "scratch", "parameterization": "supar"}
    rest = {"density_exponent": None, "inputs": [], "trust_pickle": False, "factory": None, "seed": 0}
    commands.transform(
        path, tmp_path / "out.pt2", plan_options=plan_options, say=said.append, **fixed, **rest, **options
    )
    return [text for text in said if text.startswith("# after pass")]


def test_the_graph_after_one_pass_is_printed(model_file, tmp_path):
    (text,) = transform(model_file, tmp_path, print_after="mask")
    assert text.startswith("# after pass mask: 1 changes")
    assert "torch.ops.aten.relu.default" in text
    assert "getattr(self, " in text


def test_all_passes_are_printed_in_order(model_file, tmp_path):
    texts = transform(model_file, tmp_path, print_after="all")
    names = [text.split(":")[0].removeprefix("# after pass ") for text in texts]
    assert names == [step.name.replace(" ", "-") for step in PIPELINE]


def test_an_unknown_pass_is_named_with_those_there_are(model_file, tmp_path):
    with pytest.raises(UserError, match=r"no pass is called 'masks'; choose one of wide, .*mask, .* or all"):
        transform(model_file, tmp_path, print_after="masks")


def test_a_name_may_have_hyphens_for_spaces():
    assert printer("readout-multiplier", print)
    assert printer("readout multiplier", print)
