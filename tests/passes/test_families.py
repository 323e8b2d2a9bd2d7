"""Parallel, factorized and doped layers against their formulas written out, and what all must keep."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from sparsify.archive import load, save
from sparsify.dst import RigL, Static
from sparsify.errors import InvalidPlanError
from sparsify.graph.trace import trace
from sparsify.masks.state import masked_parameters, verify_masks
from sparsify.passes import rewrite
from sparsify.planning import Plan, plan
from sparsify.scaling import param_groups
from tests.passes.families import MODELS, example, rewritten, traced_model

FAMILIES = ("parallel", "factorized", "doped")
CASES = [(name, family) for name in MODELS for family in FAMILIES]


def randomised(model):
    """Gains, shifts and statistics that matter, so that a lost or swapped one shows."""
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name, value in (*model.named_parameters(), *model.named_buffers()):
            if value.dim() == 1 and value.is_floating_point():
                value.uniform_(0.5, 1.5, generator=generator)
                if name.endswith(("bias", "mean")):
                    value.sub_(1.0)
    return model


def layers(model, family):
    found = [layer for layer in model.sparsify.plan.layers if layer.family == family]
    assert found
    return found


def same(left, right):
    torch.testing.assert_close(left, right, rtol=1e-5, atol=1e-6)


def compare_with(model, x, reference):
    """Outputs, and gradients of every parameter, of the rewritten model and of the formula on its modules."""
    seen = []
    for function in (model, reference):
        model.zero_grad()
        out = function(x)
        (out * torch.linspace(-1, 1, out.numel()).reshape(out.shape)).sum().backward()
        seen.append((out.detach(), {n: p.grad.clone() for n, p in model.named_parameters()}))
    same(seen[0][0], seen[1][0])
    assert seen[0][1].keys() == seen[1][1].keys()
    for name, grad in seen[0][1].items():
        same(grad, seen[1][1][name])
        assert bool(grad.any()), name


def branches(model, path, x, activation, *, norms=True):
    root = model.get_submodule(path)
    terms = [branch(x) for branch in root.branches]
    if norms:
        terms = [norm(term) for norm, term in zip(root.norms, terms, strict=True)]
    factor = model.sparsify.scaling[f"{path}.branches.0.weight"].forward
    return factor * sum(activation(term) for term in terms)


@pytest.mark.parametrize("training", [False, True])
def test_parallel_computes_the_sum_of_its_branches(training):
    model = randomised(rewritten("dense", family="parallel")).train(training)

    def reference(x):
        x = branches(model, "first", F.relu(model.stem(x)), F.gelu, norms=False)
        return model.head(branches(model, "second", x, F.relu))

    compare_with(model, example("dense"), reference)
    assert "norm" not in model._modules


@pytest.mark.parametrize("training", [False, True])
def test_parallel_convolutions_move_norm_and_activation_inside(training):
    model = randomised(rewritten("convolutions", family="parallel")).train(training)
    planned = {layer.fqn: layer for layer in model.sparsify.plan.layers}
    assert planned["plain"].family == "dense"

    def reference(x):
        x = branches(model, "grouped", F.relu(model.stem(x)), F.silu)
        x = branches(model, "strided", x, model.slope)
        return model.head(model.plain(x).mean((2, 3)))

    statistics = copy.deepcopy(model.state_dict())
    outputs = model(example("convolutions"))
    model.load_state_dict(statistics)
    same(outputs, reference(example("convolutions")))
    model.load_state_dict(statistics)
    if not training:
        compare_with(model, example("convolutions"), reference)


def test_factorized_puts_norm_and_activation_between_its_factors():
    model = randomised(rewritten("convolutions", family="factorized"))
    planned = {layer.fqn: layer for layer in layers(model, "factorized")}
    assert planned["plain"].nonlinearity == "none"

    def reference(x):
        one, two, three = (model.get_submodule(name) for name in ("grouped", "strided", "plain"))
        x = F.silu(model.group_norm(one.v(F.silu(one.norm(one.u(F.relu(model.stem(x))))))))
        x = two.v(two.activation[0](two.norm(two.u(x))))
        return model.head(three.v(three.u(model.slope(model.batch_norm(x)))).mean((2, 3)))

    compare_with(model, example("convolutions"), reference)
    rank = planned["grouped"].rank
    assert model.grouped.norm.num_channels == rank and rank % model.grouped.norm.num_groups == 0
    assert model.strided.norm.num_features == planned["strided"].rank
    assert model.strided.u.stride == (2, 2) and model.strided.v.kernel_size == (1, 1)
    assert model.grouped.u.groups == model.grouped.v.groups == 4
    assert model.strided.u.bias is None and model.strided.v.bias is not None


def test_doped_adds_a_low_rank_and_a_sparse_path():
    model = randomised(rewritten("convolutions", family="doped"))

    def doped(path, x):
        root, x = model.get_submodule(path), x * math.sqrt(0.5)
        return root.v(root.u(x)) + root.sparse(x)

    def reference(x):
        x = F.silu(model.group_norm(doped("grouped", F.relu(model.stem(x)))))
        x = model.slope(model.batch_norm(doped("strided", x)))
        return model.head(doped("plain", x).mean((2, 3)))

    compare_with(model, example("convolutions"), reference)
    masked = set(masked_parameters(model))
    assert masked == {f"{path}.sparse.weight" for path in ("grouped", "strided", "plain")}


def test_a_layer_called_twice_is_replaced_at_both_calls():
    model = rewritten("twice", family="parallel")

    def reference(x):
        x = branches(model, "shared", model.stem(x), F.relu, norms=False)
        return model.head(branches(model, "shared", x, F.relu, norms=False))

    compare_with(model, example("twice"), reference)


def test_raw_parameters_become_containers_beside_them():
    model = rewritten("functional", family="factorized")

    def reference(x):
        one, two = model.weight_parts, model.down
        x = F.gelu(one.v(F.gelu(one.u(F.relu(model.stem(x))))))
        return model.head(F.relu(two.v(F.relu(two.u(x)))))

    compare_with(model, example("functional"), reference)
    assert not model._parameters
    assert model.weight_parts.v.bias is not None and model.down.v.bias is None


@pytest.mark.parametrize(
    ("name", "norm", "function"),
    [
        ("relu", False, F.relu),
        ("norm", True, lambda x: x),
        ("norm+gelu", True, F.gelu),
        ("tanh", False, torch.tanh),
    ],
)
def test_a_named_nonlinearity_is_inserted_and_the_models_own_stay(name, norm, function):
    model = randomised(rewritten("dense", family="parallel", branch_nonlinearity=name))

    def reference(x):
        x = F.gelu(branches(model, "first", F.relu(model.stem(x)), function, norms=norm))
        return model.head(F.relu(model.norm(branches(model, "second", x, function, norms=norm))))

    compare_with(model, example("dense"), reference)


@pytest.mark.parametrize(("name", "family"), CASES)
def test_flops_counts_masks_and_gradients_are_the_planned_ones(name, family):
    model = rewritten(name, family=family)
    dense, _, _ = traced_model(name)
    made = model.sparsify.plan
    x = example(name)
    for layer in layers(model, family):
        assert sum(tensor.nnz for tensor in layer.tensors) == math.prod(layer.shape)
        for tensor in layer.tensors:
            owner = model.get_submodule(tensor.fqn.rpartition(".")[0])
            mask = owner._buffers.get("weight_mask")
            kept = tensor.nnz if mask is None else int(mask.sum())
            assert (kept, owner.weight.numel()) == (tensor.nnz, math.prod(tensor.shape))
            assert (mask is not None) == tensor.masked
    counts = []
    for one in (dense, model):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            one(x)
        counts.append(counter)
    spared = 0.0
    for fqn, entry in masked_parameters(model).items():
        own = counts[1].flop_counts[f"{type(model).__name__}.{fqn.rpartition('.')[0]}"]
        spared += (1 - entry.density) * sum(own.values())
    assert spared > 0
    assert counts[1].get_total_flops() - spared == pytest.approx(counts[0].get_total_flops(), rel=1e-3)
    assert made.flops.dense == counts[0].get_total_flops()
    model.train()(example(name, batch=5)).square().mean().backward()
    for fqn, entry in masked_parameters(model).items():
        assert bool(entry.param.grad.any()), fqn
        assert not bool(entry.param.grad[~entry.mask].any())


@pytest.mark.parametrize(("name", "family"), CASES)
def test_archives_copies_and_optimizer_groups_know_the_new_parameters(name, family, tmp_path):
    model = randomised(rewritten(name, family=family)).eval()
    expected = model(example(name))
    save(model, tmp_path / "model.pt2")
    back = load(tmp_path / "model.pt2")
    for other in (back, copy.deepcopy(model)):
        assert other.state_dict().keys() == model.state_dict().keys()
        assert torch.equal(other(example(name)), expected)
    assert back.sparsify == model.sparsify
    grouped = [fqn for group in param_groups(back, lr=0.1) for fqn in group["names"]]
    assert sorted(grouped) == sorted(fqn for fqn, _ in model.named_parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_new_parameter_says_what_it_comes_from(family):
    model = rewritten("convolutions", family=family)
    dense, _, _ = traced_model("convolutions")
    entries = {entry.new: entry for entry in model.sparsify.parameter_map}
    assert entries.keys() == {fqn for fqn, _ in model.named_parameters()}
    assert {entry.old for entry in entries.values()} <= dense.state_dict().keys()
    how = {"parallel": "branched", "factorized": "factored", "doped": "doped"}[family]
    weights = {tensor.fqn: layer.weight for layer in layers(model, family) for tensor in layer.tensors}
    assert {fqn: (entries[fqn].old, entries[fqn].how) for fqn in weights} == {
        fqn: (weight, how) for fqn, weight in weights.items()
    }
    if family == "parallel":
        assert entries["strided.norms.1.bias"].old == "batch_norm.bias"
        assert entries["strided.branches.2.bias"].old == "strided.bias"


@pytest.mark.parametrize("family", FAMILIES)
def test_nodes_are_marked_and_nothing_is_shared_with_the_given_model(family):
    model = rewritten("convolutions", family=family)
    given, _, _ = traced_model("convolutions")
    passes = {entry["pass"] for node in model.graph.nodes for entry in node.meta.get("provenance", ())}
    assert family in passes
    assert all("val" in node.meta for node in model.graph.nodes if node.op != "output")
    before = {t.untyped_storage().data_ptr() for t in given.state_dict(keep_vars=True).values()}
    after = {t.untyped_storage().data_ptr() for t in model.state_dict(keep_vars=True).values()}
    assert after and not before & after


def test_linear_branches_have_disjoint_masks_that_cover_the_layer():
    model = rewritten("dense", family="parallel", branch_nonlinearity="none")
    for layer in layers(model, "parallel"):
        masks = [masked_parameters(model)[tensor.fqn].mask for tensor in layer.tensors]
        assert len(masks) == 4
        assert bool((torch.stack(masks).sum(0) == 1).all())


def test_masks_of_nonlinear_branches_are_independent():
    model = rewritten("dense", family="parallel")
    masks = [masked_parameters(model)[t.fqn].mask for t in layers(model, "parallel")[0].tensors]
    assert int(torch.stack(masks).sum(0).max()) > 1


def edited(name, **change):
    _, traced, known = traced_model(name)
    data = plan(traced, facts=known, family="parallel").to_dict()
    layer = next(layer for layer in data["layers"] if layer["family"] == "parallel")
    layer.update(change)
    return lambda: rewrite(traced, Plan.from_json(data), facts=known)


@pytest.mark.parametrize("nonlinearity", ["swish2", "relu+norm", "norm+"])
def test_an_unknown_nonlinearity_is_refused_with_the_layer(nonlinearity):
    with pytest.raises(InvalidPlanError, match=r"first.*nonlinearity"):
        edited("dense", nonlinearity=nonlinearity)()


@pytest.mark.parametrize("algorithm", [Static, RigL])
@pytest.mark.parametrize("family", FAMILIES)
def test_masks_train_as_those_of_any_layer(family, algorithm):
    model = rewritten("dense", family=family).train()
    optimizer = torch.optim.SGD(param_groups(model, lr=0.01, optimizer="sgd"), momentum=0.9)
    kwargs = {} if algorithm is Static else {"update_every": 2}
    algorithm(model, optimizer, total_steps=12, **kwargs)
    before = {fqn: entry.mask.clone() for fqn, entry in masked_parameters(model).items()}
    for step in range(6):
        optimizer.zero_grad()
        model(example("dense", batch=8, seed=step)).square().mean().backward()
        optimizer.step()
    verify_masks(model)
    after = {fqn: entry.mask for fqn, entry in masked_parameters(model).items()}
    assert {fqn: int(mask.sum()) for fqn, mask in after.items()} == {
        fqn: int(mask.sum()) for fqn, mask in before.items()
    }
    assert any(not torch.equal(before[fqn], after[fqn]) for fqn in after) == (algorithm is RigL)


@pytest.mark.parametrize("family", FAMILIES)
def test_on_the_meta_device_shapes_are_rewritten_and_nothing_is_drawn(family):
    with torch.device("meta"):
        model = MODELS["convolutions"][0]().eval()
    traced = trace(model, (example("convolutions").to("meta"),))
    result = rewrite(traced, plan(traced, family=family))
    assert layers(result, family)
    assert all(tensor.is_meta for tensor in result.state_dict().values())
