"""The JSON form: round trips, edits, and errors that name what does not fit."""

import json

import pytest

from sparsify.errors import InvalidPlanError
from sparsify.planning import COLUMNS, Plan, PlanOptions, fit, plan_from_facts, rows
from tests.planning.hand_built import mlp, transformer


def plan_of(facts=None, **options):
    return plan_from_facts(facts or transformer(), PlanOptions(**options), example=((4, 32),))


def edited(change):
    data = json.loads(plan_of().to_json())
    change(data)
    return data


@pytest.mark.parametrize("options", [{}, {"scope": "inner"}, {"family": "masked"}, {"sparsity": 0.0}])
def test_a_plan_survives_json_and_fitting(options):
    made = plan_of(**options)
    read = Plan.from_json(made.to_json())
    assert read == made
    assert fit(read, transformer()) == made


def test_an_edited_width_reaches_shapes_and_flops():
    data = edited(lambda data: data["groups"][2].update(width=512))
    made = fit(Plan.from_json(data), transformer())
    assert next(each.shape for each in made.layers if each.fqn == "fc1")[0] == 512
    assert made.flops.ratio != pytest.approx(plan_of().flops.ratio, abs=1e-3)


def test_an_edited_density_masks_a_dense_layer():
    data = edited(lambda data: data["layers"][-1].update(density=0.5))
    head = fit(Plan.from_json(data), transformer()).layers[-1]
    assert head.family == "wide" and head.nnz == head.shape[0] * head.shape[1] // 2


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d.update(version=99), "version"),
        (lambda d: d.update(format="other"), "format"),
        (lambda d: d.pop("groups"), "groups"),
        (lambda d: d.update(extra=1), "extra"),
        (lambda d: d["layers"][1].update(density="half"), r"attn\.q.*density"),
        (lambda d: d["layers"][1].pop("nnz"), r"attn\.q.*nnz"),
        (lambda d: d["groups"][0].update(width=1.5), r"d.*width"),
        (lambda d: d.update(flops=3), "flops"),
    ],
)
def test_json_that_does_not_fit_the_form_names_the_key(change, named):
    with pytest.raises(InvalidPlanError, match=named):
        Plan.from_json(edited(change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda d: d["layers"][1].update(density=1.5), r"attn\.q.*density"),
        (lambda d: d["layers"][1].update(density=0.0), r"attn\.q.*density"),
        (lambda d: d["layers"][1].update(family="thin"), r"attn\.q.*family"),
        (lambda d: d["layers"][0].update(density=0.5), r"embed.*embedding"),
        (lambda d: d["layers"][1].update(fqn="attn.x"), r"attn\.x"),
        (lambda d: d["layers"].pop(1), r"attn\.q.*missing"),
        (lambda d: d["layers"].append(d["layers"][1]), r"attn\.q.*twice"),
        (lambda d: d["groups"][3].update(width=200), r"vocab.*table"),
        (lambda d: d["groups"][0].update(width=0), r"d.*width"),
        (lambda d: d["groups"][0].update(size=65), r"d.*size"),
        (lambda d: d.update(model="0" * 16), "model"),
    ],
)
def test_plans_that_do_not_fit_the_model_name_the_layer_or_group(change, named):
    with pytest.raises(InvalidPlanError, match=named):
        fit(Plan.from_json(edited(change)), transformer())


def test_a_plan_of_another_model_is_refused():
    with pytest.raises(InvalidPlanError):
        fit(plan_of(mlp()), transformer())
    with pytest.raises(InvalidPlanError, match=r"size|fingerprint"):
        fit(plan_of(transformer(128)), transformer())


def test_text_that_is_no_json_is_refused():
    with pytest.raises(InvalidPlanError, match="not valid JSON"):
        Plan.from_json("{")


def test_rows_have_one_line_a_layer_and_a_total():
    made = plan_of()
    table = rows(made)
    assert len(table) == len(made.layers) + 1
    assert {len(line) for line in table} == {len(COLUMNS)}
    assert f"{made.flops.ratio:.5f}" in table[-1][-1]
