"""The public verbs; the only module that knows the whole order: load, trace, plan, rewrite, train, export."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from torch import nn

from sparsify import archive, lowering, onnx_export, planning, train
from sparsify.archive import load, save
from sparsify.errors import UserError
from sparsify.graph.facts import facts
from sparsify.graph.trace import trace as _trace
from sparsify.graph.traced import Traced
from sparsify.masks.module import SparseGraphModule
from sparsify.passes import PIPELINE, Observer, Pass, rewrite
from sparsify.passes.base_model import base_of
from sparsify.passes.checkpoint import dense_state_dict, load_dense
from sparsify.passes.explain import explain
from sparsify.passes.narrow import narrow as _narrow
from sparsify.passes.preserve import DEFAULT_NEW_CONNECTIONS, plan_defaults
from sparsify.passes.record import Record
from sparsify.planning import Plan, plan
from sparsify.scaling import Base, param_groups
from sparsify.train import FinetuneResult

__all__ = [
    "Base",
    "Plan",
    "dense_state_dict",
    "explain",
    "export",
    "finetune",
    "load",
    "load_dense",
    "narrow",
    "param_groups",
    "plan",
    "save",
    "save_base",
    "trace",
    "transform",
]

Init = Literal["scratch", "preserve"]
Parameterization = Literal["supar", "mup", "sp"]


def trace(
    model: nn.Module,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    dynamic: bool = True,
    dynamic_shapes: Any = None,
) -> Traced:
    """Captures a model as a canonical graph whose parameters are the model's own.

    Args:
        model: Any module that torch.export can capture.
        args: Example of its positional inputs.
        kwargs: Example of its keyword inputs.
        dynamic: Leave dimension 0 of every tensor input open, and dimension 1 of integer and mask inputs.
        dynamic_shapes: In place of `dynamic`, what `torch.export.export` takes.

    Returns:
        The trace; `.module` is the canonical GraphModule.

    Raises:
        UserError: The model does not run on the example.
        UnsupportedModelError: torch.export cannot capture it: what, where, and what to try.
    """
    found = _trace(model, tuple(args), dict(kwargs or {}), dynamic=dynamic, dynamic_shapes=dynamic_shapes)
    if not isinstance(model, SparseGraphModule):
        return found
    # A loaded model was traced once before: what could not be captured then is not in its graph any more.
    return replace(found, refusals=(*model.sparsify.refusals, *found.refusals))


def transform(
    model: nn.Module | Traced,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    plan: Plan | None = None,
    init: Init = "scratch",
    parameterization: Parameterization = "supar",
    density_exponent: float | None = None,
    base: nn.Module | Traced | Base | str | Path | None = None,
    lr_behind_batchnorm: bool = False,
    input_multiplier: float = 1.0,
    output_multiplier: float = 1.0,
    seed: int = 0,
    dynamic: bool = True,
    dynamic_shapes: Any = None,
    base_std: Mapping[str, float] | None = None,
    new_connections: float = DEFAULT_NEW_CONNECTIONS,
    initial_density: float | None = None,
    pipeline: Sequence[type[Pass]] = PIPELINE,
    observe: Observer | None = None,
    **plan_options: Any,
) -> SparseGraphModule:
    """Rewrites a dense model into a sparse model of the same FLOPs (or, masked, of the same shapes).

    Args:
        model: Dense model, or its trace.
        args: Example positional inputs; their shapes are the ones FLOPs are taken at.
        kwargs: Example keyword inputs.
        plan: A plan made earlier; otherwise one is made from `plan_options`.
        init: `scratch` draws new weights; `preserve` keeps the given ones as far as the budget allows, plans
            so that every layer has as many weights as before and, with `scope="inner"`, leaves heads alone,
            and says in `.sparsify.preserve` how far from the given model the result starts.
        parameterization: How initial weights and learning rates follow width and density.
        density_exponent: γ of m_ρ^γ in SμPar; 1 when not given.
        base: Dense model of the same architecture at other widths that hyper-parameters were tuned on, as
            built, before training; or its description, or the file that `save_base` wrote. Initial weights,
            learning rates and multipliers are then relative to it and not to `model`. docs/scaling.md.
        lr_behind_batchnorm: Correct learning rates of weights behind batch normalisations too.
        input_multiplier: α_in, which everything that embeddings and first layers put out is multiplied by.
        output_multiplier: α_out, the same for readouts.
        seed: Seed of weights and masks; the same seed gives the same model, tensor by tensor.
        dynamic: Whether batch and sequence dimensions stay free.
        dynamic_shapes: Explicit `torch.export` dynamic shapes instead of `dynamic`.
        base_std: Standard deviation of the base's initial weights by parameter fqn.
        new_connections: With `preserve`, the share of every mask for units that the given model does not
            have. With 0 the start is as close as can be, and such units never learn.
        initial_density: Share of every masked weight that is active at the start, where training prunes it to
            the planned one (`dst.GMP`); 1 starts dense. None starts as planned.
        pipeline: The passes in order, in place of `sparsify.passes.PIPELINE`; docs/writing_a_pass.md.
        observe: Called with the name and the result of each pass when it is done.
        **plan_options: Options of `plan`: family, sparsity, width, pattern, scope, budget, ….

    Returns:
        A graph module that trains and exports like any other; `.sparsify` holds plan, parameter map, scaling.

    Raises:
        UnsupportedModelError: The model cannot be captured or rewritten.
        BudgetError: No density meets the FLOP budget at the width asked for.
        InvalidPlanError: `plan` does not fit the model.
        UserError: Options that contradict each other, a base of another architecture, or weights with NaN.
    """
    if plan is not None and plan_options:
        raise UserError(f"plan= already decides {', '.join(sorted(plan_options))}; give one or the other")
    if isinstance(model, Traced):
        traced = model
    else:
        refuse_rewritten(model)
        traced = trace(model, args, kwargs, dynamic=dynamic, dynamic_shapes=dynamic_shapes)
    if init == "preserve":
        plan_options = plan_defaults(plan_options)
    known = facts(traced)
    chosen = plan if plan is not None else planning.plan(traced, facts=known, **plan_options)
    return rewrite(
        traced,
        chosen,
        init=init,
        parameterization=parameterization,
        density_exponent=density_exponent,
        base=None if base is None else as_base(base, args, kwargs, traced),
        lr_behind_batchnorm=lr_behind_batchnorm,
        input_multiplier=input_multiplier,
        output_multiplier=output_multiplier,
        seed=seed,
        base_std=base_std,
        new_connections=new_connections,
        initial_density=initial_density,
        facts=known,
        pipeline=pipeline,
        observe=observe,
    )


def save_base(
    model: nn.Module | Traced,
    path: str | Path,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
) -> Base:
    """Writes what `transform(base=…)` needs to know of a small dense model as JSON; no weights.

    Args:
        model: The model that hyper-parameters are tuned on, freshly built: its weights say what they were
            drawn with.
        path: File to write.
        args: Example positional inputs; not needed for models loaded from an archive, nor for traces.
        kwargs: Example keyword inputs.

    Returns:
        What was written.

    Raises:
        UnsupportedModelError: The model cannot be captured.
        UserError: The model was rewritten, or does not run on the example.
    """
    found = as_base(model, args, kwargs)
    found.save(path)
    return found


def as_base(
    base: nn.Module | Traced | Base | str | Path,
    args: Sequence[Any],
    kwargs: Mapping[str, Any] | None,
    model: Traced | None = None,
) -> Base:
    """Describes a base, whichever way it was given.

    Args:
        base: The small dense model, its trace, its description, or the file that holds that.
        args: Example positional inputs of a model.
        kwargs: Example keyword inputs of a model.
        model: The large model's trace, whose example is taken where there is no other.

    Raises:
        UnsupportedModelError: The model cannot be captured.
        UserError: The file holds no base, or the model was rewritten or does not run on the example.
    """
    if isinstance(base, Base):
        return base
    if isinstance(base, str | Path):
        return Base.read(base)
    if isinstance(base, Traced):
        return base_of(base)
    refuse_rewritten(base)
    shapes = None
    if not args and not kwargs and isinstance(base, SparseGraphModule):
        args, kwargs = base.sparsify.inputs.example()
        shapes = base.sparsify.inputs.dynamic_shapes()
    elif not args and not kwargs and model is not None:
        args, kwargs = model.args, model.kwargs
    try:
        return base_of(trace(base, args, kwargs, dynamic_shapes=shapes))
    except UserError as error:
        raise UserError(f"base: {error}") from error


def refuse_rewritten(model: nn.Module) -> None:
    """Checks that a model was not rewritten before: its FLOPs would no longer be the dense model's.

    Raises:
        UserError: The model has a plan already.
    """
    plan = model.sparsify.plan if isinstance(model, SparseGraphModule) else None
    if plan is not None:
        raise UserError(
            f"this is a {plan.options.family} model already, rewritten once; transform the dense model that "
            "it came from"
        )


def finetune(
    model: nn.Module,
    data: Any,
    *,
    output: str | Path | None = None,
    method: str = "rigl",
    distill: nn.Module | str | Path | None = None,
    **options: Any,
) -> FinetuneResult:
    """Trains a model on a data SPEC with fixed or changing masks and saves the result.

    Args:
        model: A transformed or loaded model, or any `nn.Module` with a method that takes dense models.
        data: Data SPEC (`digits`, `fashion-mnist[:DIR]`, `npz:FILE`, `text:FILE_OR_DIR`,
            `package.module:function`).
        output: Archive to write; checkpoints and logs go to `<output>.ckpt/` while training.
        method: `dense`, or one of `sparsify.dst.METHODS`: static, set, rigl, srigl, sparse-momentum, gmp, ….
        distill: Teacher whose outputs count beside the targets, or its file; as a rule the dense model.
        **options: Options of `sparsify.train.finetune`: epochs, steps, batch_size, optimizer, lr, ….

    Returns:
        The metrics, the density, the history of the run, and the trained model.

    Raises:
        UserError: A data SPEC, method or option that does not fit.
        TrainingDivergedError: A loss, gradient or weight is not finite any more; the last good checkpoint is
            kept.
    """
    teacher = load(distill) if isinstance(distill, str | Path) else distill
    result = train.finetune(model, data, output=output, method=method, distill=teacher, **options)
    if output is not None:
        trained = result.model
        if not isinstance(trained, SparseGraphModule):
            trained = archive.wrap(trace(trained, result.example_args, result.example_kwargs))
        save(trained, output)
    return result


def export(
    model: nn.Module,
    path: str | Path,
    *,
    args: Sequence[Any] | None = None,
    kwargs: Mapping[str, Any] | None = None,
    dense: bool = False,
) -> lowering.LowerReport:
    """Writes ONNX: lowered to sparse operators where they are faster, or plain with zeros in place.

    Args:
        model: A transformed, loaded or plain model.
        path: File to write; appears whole or not at all.
        args: Example inputs; not needed for models that were transformed or loaded from an archive.
        kwargs: Example keyword inputs.
        dense: Write standard operators only.

    Returns:
        What became of every node, the file's size in bytes, and the largest absolute error against torch.

    Raises:
        ParityError: The written model's outputs differ from the model's.
        UserError: Example inputs are needed, or a weight outside its mask is not zero.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        return onnx_export.export(model, path, args=args, kwargs=kwargs, dense=dense)


def narrow(
    model: nn.Module | Traced,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    units: Mapping[str, Sequence[int]] | None = None,
    tolerance: float | None = None,
    multiple_of: int = 1,
    dynamic: bool = True,
    dynamic_shapes: Any = None,
) -> SparseGraphModule:
    """Takes dead neurons, filters and heads out of a model; what it computes in evaluation mode stays.

    A unit is dead when all that reads it reads zeros, or a constant that the next bias can take over.

    Args:
        model: Any model, or its trace; dense, or sparse from `transform` or `load`.
        args: Example positional inputs; not needed for models that carry their own.
        kwargs: Example keyword inputs.
        units: Units to take out instead of the dead ones: width group id, or any member such as
            `fc1.weight[0]`, to numbers of its units (channels; heads where the head size is fixed).
        tolerance: Largest difference of an output allowed, as a share of its largest magnitude. Without it
            rounding only; with `units` the difference is then reported and not judged.
        multiple_of: Widths that change end as multiples of this, or as they were. ONNX Runtime's convolutions
            are fast at multiples of 16 (AVX-512) or 8 (AVX2, NEON), and slow beside them.
        dynamic: Whether batch and sequence dimensions stay free.
        dynamic_shapes: Explicit `torch.export` dynamic shapes instead of `dynamic`.

    Returns:
        The narrowed model, which shares no memory with the given one; `meta["narrowing"]` says what went,
        what was refused and why, parameters and FLOPs before and after, and the largest difference.

    Raises:
        UnsupportedModelError: The model cannot be captured.
        UserError: A listed group or unit does not exist or may not go, or `multiple_of` is below 1.
        ParityError: Outputs differ by more than is allowed; nothing is returned.
    """
    if isinstance(model, Traced):
        return _narrow(
            model, Record.of_dense(model), units=units, tolerance=tolerance, multiple_of=multiple_of
        )
    record = model.sparsify if isinstance(model, SparseGraphModule) else None
    if record is not None and not args and not kwargs:
        args, kwargs = record.inputs.example()
        dynamic_shapes = record.inputs.dynamic_shapes() if dynamic_shapes is None else dynamic_shapes
    traced = trace(model, args, kwargs, dynamic=dynamic, dynamic_shapes=dynamic_shapes)
    known = record or Record.of_dense(traced)
    return _narrow(traced, known, units=units, tolerance=tolerance, multiple_of=multiple_of)
