"""The whole rewrite: the passes in their one order, and what is recorded of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import torch
import torch.fx

from sparsify.errors import Refusal, UserError
from sparsify.graph.facts import Facts
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.inputs import InputSpec
from sparsify.graph.traced import Traced
from sparsify.graph.train_mode import train_record
from sparsify.masks.module import SparseGraphModule
from sparsify.passes.attention import AttentionMultiplier
from sparsify.passes.contract import Context, Init, Pass, PassResult
from sparsify.passes.dense import dense_tensors
from sparsify.passes.doped import Doped
from sparsify.passes.factorized import Factorized
from sparsify.passes.initialise import Initialise
from sparsify.passes.mask import Mask
from sparsify.passes.origins import key_sources, mapping
from sparsify.passes.parallel import Parallel
from sparsify.passes.preserve import (
    DEFAULT_NEW_CONNECTIONS,
    check_preservable,
    sheet_of,
    tensors_of,
)
from sparsify.passes.readout import InputMultiplier, ReadoutMultiplier
from sparsify.passes.record import Record
from sparsify.passes.recover import report
from sparsify.passes.scaled import ScalingOptions, scaling_of
from sparsify.passes.starting import drawn_for, starting_plan
from sparsify.passes.wide import Wide
from sparsify.planning import Plan, fit
from sparsify.scaling import Base, Scaling
from sparsify.scaling.table import Parameterization

PIPELINE: tuple[type[Pass], ...] = (
    Wide,
    Parallel,
    Factorized,
    Doped,
    Initialise,
    Mask,
    InputMultiplier,
    AttentionMultiplier,
    ReadoutMultiplier,
)
Observer = Callable[[str, PassResult], None]


def rewrite(
    traced: Traced,
    plan: Plan,
    *,
    init: Init = "scratch",
    parameterization: Parameterization = "supar",
    density_exponent: float | None = None,
    base: Base | None = None,
    lr_behind_batchnorm: bool = False,
    input_multiplier: float = 1.0,
    output_multiplier: float = 1.0,
    seed: int = 0,
    base_std: Mapping[str, float] | None = None,
    new_connections: float = DEFAULT_NEW_CONNECTIONS,
    initial_density: float | None = None,
    facts: Facts | None = None,
    pipeline: Sequence[type[Pass]] = PIPELINE,
    observe: Observer | None = None,
) -> SparseGraphModule:
    """Applies a plan: a new module with masks, initial weights, scaling and a record.

    Args:
        traced: The model; left as it is.
        plan: A plan for it, possibly edited.
        init: `scratch` draws new weights; `preserve` keeps the given ones as far as the budget allows, and
            the record says how far from the given model the result starts.
        parameterization: How initial weights and learning rates follow width and density.
        density_exponent: γ in m_ρ = density^γ; 1 when not given.
        base: The dense model that scaling is relative to, where it is not the given one.
        lr_behind_batchnorm: Correct learning rates behind batch normalisations too.
        input_multiplier: α_in, on what embeddings and first layers put out.
        output_multiplier: α_out, on what readouts put out.
        seed: Seed of weights and masks, tensor by tensor.
        base_std: Standard deviations of initial weights by parameter name, before scaling.
        new_connections: With `preserve`, the share of every mask that goes to units which the given model
            does not have; without any, such units never learn.
        initial_density: Share of every masked weight that is active at the start, where training prunes it to
            the planned one; 1 starts dense.
        facts: The facts of `traced`, where they are known already.
        pipeline: Passes in order; what they refuse is added to the plan's refusals.
        observe: Called with each pass's name and result when the pass is done.

    Returns:
        The rewritten model; it shares no memory with the given one.

    Raises:
        InvalidPlanError: The plan does not fit the model.
        UserError: An option does not fit, or a given weight is NaN or infinite.
    """
    check_pipeline(pipeline)
    known = facts if facts is not None else facts_of(traced)
    fitted = fit(plan, known, ties=traced.ties)
    _check_options(traced, init, base_std or {})
    _check_finite(traced.module)
    if init == "preserve":
        check_preservable(fitted, new_connections)
    asked = ScalingOptions(
        parameterization, density_exponent, base, lr_behind_batchnorm, input_multiplier, output_multiplier
    )
    scaling = scaling_of(traced, known, fitted, asked, init)
    start = starting_plan(fitted, initial_density)
    if initial_density is not None:
        scaling = drawn_for(scaling, scaling_of(traced, known, start, asked, init))
    context = Context(traced, known, scaling, init, seed, dict(base_std or {}), new_connections, base)
    result, refusals = _run(pipeline, context, start, observe)
    fitted = replace(fitted, refusals=(*fitted.refusals, *refusals))
    result.sparsify = _record(traced, known, fitted, scaling, init, result)
    result.sparsify.initial_density = initial_density
    if init == "preserve":
        given = tensors_of(traced.module)
        result.sparsify.preserve = report(traced, result, given, sheet_of(context, start))
    return result


def check_pipeline(pipeline: Sequence[type[Pass]]) -> None:
    """Checks that a pipeline is one: classes of passes, each with a name of its own, `Wide` among them.

    Raises:
        UserError: It is not; the message names the entry.
    """
    names: set[str] = set()
    for step in pipeline:
        if not (isinstance(step, type) and issubclass(step, Pass)):
            raise UserError(
                f"pipeline: {step!r} is no pass; give classes derived from sparsify.passes.Pass, no instances"
            )
        if not getattr(step, "name", ""):
            raise UserError(f"pipeline: {step.__qualname__} has no name; set the class attribute `name`")
        if step.name in names:
            raise UserError(f"pipeline: two passes are called {step.name!r}; give each its own name")
        names.add(step.name)
    if Wide not in pipeline:
        raise UserError(
            "pipeline: the pass 'wide' is missing, which makes the new module; start from "
            "sparsify.passes.PIPELINE"
        )


def _run(
    pipeline: Sequence[type[Pass]], context: Context, plan: Plan, observe: Observer | None
) -> tuple[SparseGraphModule, list[Refusal]]:
    graph: torch.fx.GraphModule = context.traced.module
    refusals: list[Refusal] = []
    for step in pipeline:
        done = step(context)(graph, plan)
        graph = done.graph
        refusals += done.refusals
        if observe is not None:
            observe(step.name, done)
    if not isinstance(graph, SparseGraphModule):
        raise UserError(
            f"pipeline: pass {pipeline[-1].name!r}, or one before it, returned a {type(graph).__name__}; "
            "change the graph that a pass gets, or copy it with copy.deepcopy"
        )
    return graph, refusals


def _record(
    traced: Traced, facts: Facts, plan: Plan, scaling: Scaling, init: Init, result: SparseGraphModule
) -> Record:
    mapped = mapping(traced, facts, plan, init)
    return Record(
        plan=plan,
        parameter_map=mapped,
        scaling=scaling,
        weights="kept" if init == "preserve" else "new",
        inputs=InputSpec.from_traced(traced),
        key_map=key_sources(traced, mapped, set(result.state_dict())),
        ties=traced.ties,
        train_record=train_record(result),
        parameters_dense=sum(parameter.numel() for parameter in traced.module.parameters()),
        refusals=traced.refusals,
        dense=dense_tensors(traced, facts),
    )


def _check_options(traced: Traced, init: str, base_std: Mapping[str, float]) -> None:
    if init not in ("scratch", "preserve"):
        raise UserError(f"init {init!r} is unknown; choose scratch or preserve")
    names = {name for name, _ in traced.module.named_parameters(remove_duplicate=False)}
    for name, std in base_std.items():
        if name not in names:
            raise UserError(f"base_std: the model has no parameter {name!r}")
        if not std >= 0 or std == float("inf"):
            raise UserError(
                f"base_std: {name!r} must have a finite standard deviation of at least 0, not {std}"
            )


def _check_finite(module: torch.fx.GraphModule) -> None:
    tensors = {**dict(module.named_parameters()), **dict(module.named_buffers())}
    parameters = {name for name, _ in module.named_parameters()}
    for name, tensor in tensors.items():
        if name in parameters and tensor.is_floating_point() and tensor.numel() and not tensor.is_meta:
            low, high = torch.aminmax(tensor.detach())
            if not (torch.isfinite(low) and torch.isfinite(high)):
                raise UserError(
                    f"the given weights hold NaN or infinite values in {name!r}; repair the checkpoint"
                )
