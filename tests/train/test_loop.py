from __future__ import annotations

import copy
import csv
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from sparsify.errors import Refusal, SparsifyError, UserError
from sparsify.masks import SparseGraphModule, masked_parameters, verify_masks
from sparsify.train import Arrays, Data, TrainingDivergedError, checkpoint, finetune
from tests.train.tasks import network, points

RUN = {"steps": 60, "batch_size": 16, "lr": 0.02, "weight_decay": 0.01, "update_every": 4, "progress": False}


def assert_equal_models(a: nn.Module, b: nn.Module) -> None:
    assert a.state_dict().keys() == b.state_dict().keys()
    for name, tensor in a.state_dict().items():
        assert torch.equal(tensor, b.state_dict()[name]), name


def without_time(rows):
    return [{name: value for name, value in row.items() if name != "seconds"} for row in rows]


@pytest.mark.parametrize("method", ["dense", "static", "rigl"])
@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_every_method_learns_and_keeps_its_promise_about_masks(method, optimizer):
    model = network(masked=method != "dense")
    before = {fqn: entry.mask.clone() for fqn, entry in masked_parameters(model).items()}
    result = finetune(model, points(), method=method, optimizer=optimizer, **RUN)
    assert result.model is model and model.training
    assert result.metrics["accuracy"] > 0.8
    assert result.density == (1.0 if method == "dense" else 0.25)
    verify_masks(model)
    for fqn, entry in masked_parameters(model).items():
        assert torch.equal(entry.mask, before[fqn]) == (method == "static")
        assert int(entry.mask.sum()) == int(before[fqn].sum())


def test_the_same_seed_gives_the_same_numbers_and_leaves_torch_alone():
    torch.manual_seed(123)
    models = [network(1) for _ in range(3)]
    state = torch.get_rng_state()
    histories = [
        finetune(model, points(), **RUN, seed=seed).history
        for model, seed in zip(models, (5, 5, 6), strict=True)
    ]
    assert torch.equal(torch.get_rng_state(), state)
    assert_equal_models(models[0], models[1])
    assert without_time(histories[0]) == without_time(histories[1])
    assert without_time(histories[0]) != without_time(histories[2])


class Interrupted(Exception):
    pass


class Stopping(Arrays):
    """Training data that fails at its n-th batch, as a process that dies would."""

    def batch(self, index):
        if len(index) == 16:
            object.__setattr__(self, "left", getattr(self, "left", 40) - 1)
            if self.left < 0:
                raise Interrupted
        return super().batch(index)


@pytest.mark.parametrize(("method", "optimizer"), [("static", "sgd"), ("set", "adamw")])
def test_a_stopped_run_resumes_to_the_same_numbers_bit_for_bit(tmp_path, method, optimizer):
    data = points()
    options = {**RUN, "method": method, "optimizer": optimizer, "evaluate_every": 7, "seed": 3}
    straight, stopped = network(), network()
    expected = finetune(straight, data, output=tmp_path / "a.pt2", **options)
    failing = Data(data.name, data.task, Stopping(data.train.inputs, data.train.targets), data.test)
    with pytest.raises(Interrupted):
        finetune(stopped, failing, output=tmp_path / "b.pt2", **options)
    resumed = network(seed=77)
    result = finetune(resumed, data, output=tmp_path / "b.pt2", resume=True, **options)
    assert_equal_models(straight, resumed)
    assert without_time(result.history) == without_time(expected.history)
    assert result.metrics == expected.metrics
    with (tmp_path / "b.pt2.ckpt" / "log.csv").open() as file:
        assert [int(row["step"]) for row in csv.DictReader(file)] == [row["step"] for row in result.history]


def test_resume_starts_where_there_is_nothing_and_ends_where_all_is_done(tmp_path):
    first = network()
    expected = finetune(first, points(), output=tmp_path / "m.pt2", resume=True, **RUN)
    again = network(9)
    result = finetune(again, points(), output=tmp_path / "m.pt2", resume=True, **RUN)
    assert_equal_models(first, again)
    assert result.metrics == expected.metrics


def test_resume_refuses_other_options_other_data_and_other_models(tmp_path):
    output = tmp_path / "m.pt2"
    finetune(network(), points(), output=output, **RUN)
    with pytest.raises(UserError, match=r"lr \(was 0\.02, is 0\.03\)"):
        finetune(network(), points(), output=output, resume=True, **{**RUN, "lr": 0.03})
    with pytest.raises(UserError, match="data"):
        finetune(network(), points(seed=4), output=output, resume=True, **RUN)
    other = nn.Sequential(*network(), nn.Linear(3, 3))
    with pytest.raises(UserError, match="another model"):
        finetune(other, points(), output=output, resume=True, **RUN)
    with pytest.raises(UserError, match="output="):
        finetune(network(), points(), resume=True, **RUN)


def test_the_best_and_the_last_checkpoint_hold_their_steps(tmp_path):
    result = finetune(network(), points(), output=tmp_path / "m.pt2", evaluate_every=5, **RUN)
    assert result.checkpoints == tmp_path / "m.pt2.ckpt"
    best, last = (checkpoint.read(result.checkpoints / f"{name}.safetensors") for name in ("best", "last"))
    tests = {row["step"]: row["test_accuracy"] for row in result.history if "test_accuracy" in row}
    del tests[0]
    assert last["step"] == 60 and best["step"] == max(tests, key=lambda step: (tests[step], -step))
    assert not list(result.checkpoints.glob("*.tmp"))
    assert (result.checkpoints / "log.png").read_bytes().startswith(b"\x89PNG")


def test_divergence_stops_with_the_last_good_checkpoint_and_advice(tmp_path):
    data = points()
    poisoned = Stopping(data.train.inputs, data.train.targets)

    def fail(self, index):
        batch = Arrays.batch(self, index)
        object.__setattr__(self, "seen", getattr(self, "seen", 0) + 1)
        if self.seen > 25:
            batch.args[0].fill_(torch.nan)
        return batch

    kind = type("Poisoned", (Stopping,), {"batch": fail})
    poisoned = kind(data.train.inputs, data.train.targets)
    with pytest.raises(TrainingDivergedError, match=r"step 25: .*last\.safetensors \(step 20\).*[Ll]ower lr"):
        finetune(
            network(),
            Data("p", data.task, poisoned, data.test),
            output=tmp_path / "m",
            evaluate_every=10,
            **RUN,
        )
    state = checkpoint.read(tmp_path / "m.ckpt" / "last.safetensors")
    assert state["step"] == 20
    assert all(tensor.isfinite().all() for tensor in state["model"].values())


def test_batch_norm_and_dropout_train_and_the_mode_is_restored():
    model = network().eval()
    seen = []
    model[3].register_forward_pre_hook(lambda module, args: seen.append(module.training))
    before = model[1].running_mean.clone()
    finetune(model, points(), **{**RUN, "steps": 4})
    assert not model.training
    assert True in seen and False in seen
    assert not torch.equal(model[1].running_mean, before)


def test_the_groups_of_the_stored_parameterization_are_used(monkeypatch):
    model = network(masked=False)
    calls = []

    def groups(model, **options):
        calls.append(options)
        return [{"params": [p], "lr": options["lr"] * 2} for p in model.parameters()]

    monkeypatch.setattr("sparsify.train.setting_up.param_groups", groups)
    finetune(model, points(), method="dense", optimizer="sgd", **{**RUN, "steps": 2})
    assert calls == [{"lr": 0.02, "weight_decay": 0.01, "optimizer": "sgd"}]


def test_clipping_limits_the_step():
    free, clipped = network(), network()
    start = copy.deepcopy(free.state_dict())
    options = {**RUN, "steps": 1, "method": "static", "optimizer": "sgd", "weight_decay": 0.0, "warmup": 0.0}
    finetune(free, points(), **options)
    finetune(clipped, points(), **options, clip=1e-3)
    moved = [
        sum(float((p.detach() - start[name]).norm() ** 2) for name, p in model.named_parameters()) ** 0.5
        for model in (free, clipped)
    ]
    assert moved[1] == pytest.approx(0.02 * 1e-3, rel=1e-2) and moved[0] > 10 * moved[1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "dense"}, "has masks"),
        ({"method": "lottery"}, "not one of dense, static, set, rigl"),
        ({"optimizer": "lion"}, "not one of adamw, sgd"),
        ({"epochs": 1}, "epochs and steps"),
        ({"batch_size": 0}, "batch_size must be at least 1"),
        ({"lr": -1.0}, "lr must be positive"),
        ({"warmup": 1.0}, "warmup"),
        ({"device": "abacus"}, "unknown device"),
        ({"learning_rate": 1.0}, "no option 'learning_rate'"),
        ({"schedule": "stairs"}, "not one of cosine, linear, constant"),
        ({"precision": "fp8"}, "not one of fp32, bf16"),
        ({"accumulate": 32}, "parts of a batch of 16"),
        ({"label_smoothing": 1.0}, "label_smoothing"),
        ({"distill_weight": 2.0}, "distill_weight"),
        ({"temperature": 0.0}, "temperature must be positive"),
        ({"keep": "worst"}, "'last' or 'best'"),
        ({"keep": "best"}, "needs output="),
        ({"tensorboard": True}, "needs output="),
        ({"method_options": {"gamma": 1}}, "rigl has no option 'gamma'"),
        ({"drop_fraction": 0.1, "method_options": {"drop_fraction": 0.2}}, "given twice"),
        ({"method": "gmp"}, "target"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        finetune(network(), points(), **{**RUN, **options})


def test_a_dense_model_is_not_trained_sparsely_by_mistake():
    with pytest.raises(UserError, match="no masks for 'rigl'"):
        finetune(network(masked=False), points(), **RUN)


def test_a_model_that_trains_otherwise_than_the_users_is_refused():
    inner = network(masked=False)
    model = SparseGraphModule(inner, torch.fx.symbolic_trace(inner).graph)
    refusal = Refusal("block.drop", "training-mode", "it draws at random")
    model.sparsify = SimpleNamespace(refusals=(refusal,), scaling=None, inputs=None)
    with pytest.raises(SparsifyError, match=r"'block\.drop' does not train"):
        finetune(model, points(), method="dense", **RUN)
