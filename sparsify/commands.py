"""What each command does with files, as functions that return the command's JSON object."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from sparsify import runtime
from sparsify._console import CheckFailedError
from sparsify.errors import InvalidPlanError, UserError

Consent = bool | Callable[[str], bool]
ONNX_SUFFIXES = {".onnx"}


def load_model(path: Path, *, trust_pickle: Consent, factory: str | None) -> Any:
    """Loads a model file; where consent is a question, asks it only once it is needed.

    Raises:
        UserError: The file is not a model, or needs consent or a factory that was not given.
    """
    from sparsify import api
    from sparsify.archive import PickleConsentError

    if not path.exists():
        raise UserError(f"{path} does not exist")
    try:
        return api.load(path, trust_pickle=trust_pickle is True, factory=factory)
    except PickleConsentError as error:
        if trust_pickle is False or trust_pickle is True or not trust_pickle(str(error)):
            raise
        return api.load(path, trust_pickle=True, factory=factory)


def traced_from(model: Any, inputs: Sequence[str]) -> Any:
    """Traces a loaded model with the inputs that the user named, else with those that its archive records.

    Raises:
        UserError: The model has no recorded inputs and none were given.
    """
    from sparsify import api
    from sparsify.graph.inputs import InputSpec
    from sparsify.masks.module import SparseGraphModule

    if inputs:
        spec = InputSpec.parse(inputs)
    elif isinstance(model, SparseGraphModule):
        spec = model.sparsify.inputs
    else:
        raise UserError(
            "this file does not say what the model's inputs look like; describe each one, for example "
            "--input 'x:float32[batch,3,224,224]' (named dimensions stay dynamic)"
        )
    args, kwargs = spec.example()
    return api.trace(model, args, kwargs, dynamic_shapes=spec.dynamic_shapes())


def doctor() -> dict[str, Any]:
    """Checks the installation."""
    return runtime.doctor()


def transform(
    path: Path,
    output: Path | None,
    *,
    plan_file: Path | None,
    plan_only: bool,
    plan_options: Mapping[str, Any],
    init: str,
    parameterization: str,
    density_exponent: float | None,
    scaling: Mapping[str, Any] | None = None,
    new_connections: float = 0.05,
    initial_density: float | None = None,
    inputs: Sequence[str],
    trust_pickle: Consent,
    factory: str | None,
    seed: int,
    print_after: str | None = None,
    say: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Rewrites a dense model file; with `plan_only` makes and writes the plan only."""
    from sparsify import api
    from sparsify._print_after import printer
    from sparsify._scaling_options import resolved, summary
    from sparsify.passes.preserve import plan_defaults

    observe = printer(print_after, say) if print_after else None
    say(f"loading {path}")
    model = load_model(path, trust_pickle=trust_pickle, factory=factory)
    api.refuse_rewritten(model)
    traced = traced_from(model, inputs)
    given = _read_plan(plan_file) if plan_file else None
    if plan_only:
        options = plan_defaults(plan_options) if init == "preserve" else plan_options
        plan = api.plan(traced, **options) if given is None else _fitted(given, traced)
        text = plan.to_json()
        if output is not None:
            _write_text(output, text)
        return _plan_summary(plan) | {
            "parameters": _planned_parameters(traced, plan),
            "weights": None,
            "scaling": None,
            "output": str(output) if output else None,
            "plan": json.loads(text),
        }
    say("rewriting")
    rewritten = api.transform(
        traced,
        plan=given,
        init=init,  # type: ignore[arg-type]
        parameterization=parameterization,  # type: ignore[arg-type]
        density_exponent=density_exponent,
        seed=seed,
        new_connections=new_connections,
        initial_density=initial_density,
        observe=observe,
        **resolved(scaling or {}, traced, inputs=inputs, trust_pickle=trust_pickle, factory=factory),
        **(plan_options if given is None else {}),
    )
    if output is None:
        raise UserError("say where the result goes with -o")
    say(f"saving {output}")
    api.save(rewritten, output)
    record = rewritten.sparsify
    return _plan_summary(record.plan) | {
        "parameters": {"dense": record.parameters_dense} | count_parameters(rewritten),
        "weights": record.weights,
        "scaling": summary(record.scaling, (scaling or {}).get("base")),
        "preserve": record.preserve,
        "output": str(output),
    }


def count_parameters(model: Any) -> dict[str, int]:
    """Parameters of a model: all that are stored, and those that no mask leaves out."""
    from sparsify.masks import masked_parameters

    stored = sum(parameter.numel() for parameter in model.parameters())
    cut = sum(
        entry.mask.numel() - int(entry.mask.count_nonzero()) for entry in masked_parameters(model).values()
    )
    return {"stored": stored, "nonzero": stored - cut}


def _planned_parameters(traced: Any, plan: Any) -> dict[str, int]:
    from sparsify.graph.facts import facts
    from sparsify.passes.parts import parts

    own = {name for name, _ in traced.module.named_parameters()}
    found = parts(traced, facts(traced), plan).values()
    stored = sum(math.prod(part.shape) for part in found if part.kind != "whole" or part.fqn in own)
    masked = {tensor.fqn: tensor for layer in plan.layers for tensor in layer.tensors if tensor.masked}
    cut = sum(math.prod(tensor.shape) - tensor.nnz for tensor in masked.values())
    dense = sum(parameter.numel() for parameter in traced.module.parameters())
    return {"dense": dense, "stored": stored, "nonzero": stored - cut}


def _fitted(plan: Any, traced: Any) -> Any:
    """An edited plan with everything that follows from the edits."""
    from sparsify.graph.facts import facts
    from sparsify.planning import fit

    return fit(plan, facts(traced), ties=traced.ties)


def _read_plan(path: Path) -> Any:
    from sparsify import api

    try:
        return api.Plan.from_json(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidPlanError(f"cannot read the plan {path}: {error}") from error


def _plan_summary(plan: Any) -> dict[str, Any]:
    return {
        "flops": {"dense": plan.flops.dense, "sparse": plan.flops.sparse, "ratio": plan.flops.ratio},
        "pattern": plan.options.pattern,
        "layers": [
            {
                "fqn": layer.fqn,
                "kind": layer.kind,
                "family": layer.family,
                "density": layer.density,
                "width": layer.width,
                "branches": layer.branches,
                "rank": layer.rank,
                "nonlinearity": layer.nonlinearity,
                "flops": layer.flops,
                "shape": list(layer.shape),
            }
            for layer in plan.layers
        ],
        "refusals": [asdict(refusal) for refusal in plan.refusals],
    }


def _write_text(path: Path, text: str) -> None:
    temporary = path.with_name(path.name + ".tmp")
    temporary.write_text(text, encoding="utf-8")
    temporary.replace(path)


def export(
    path: Path,
    output: Path,
    *,
    dense: bool,
    inputs: Sequence[str],
    trust_pickle: Consent = False,
    factory: str | None = None,
) -> dict[str, Any]:
    """Exports a model file to ONNX."""
    from sparsify import api
    from sparsify.graph.inputs import InputSpec

    model = load_model(path, trust_pickle=trust_pickle, factory=factory)
    args, kwargs = InputSpec.parse(inputs).example() if inputs else (None, None)
    report = api.export(model, output, args=args, kwargs=kwargs, dense=dense)
    return report.to_dict() | {"output": str(output)}


def lower(
    source: Path, output: Path | None, *, what_if: float | None = None, pattern: str = "", **options: Any
) -> dict[str, Any]:
    """Lowers an ONNX file; with `what_if` imposes sparsity on it first, and needs no output.

    Raises:
        UserError: There is no output and nothing is imposed.
    """
    from sparsify import lowering

    if what_if is not None:
        report = lowering.what_if(source, what_if, output, pattern=pattern, **options)
    elif output is None:
        raise UserError("say where the result goes with -o")
    else:
        report = lowering.lower(source, output, **options)
    return report.to_dict() | {"output": None if output is None else str(output)}


def bench(path: Path, *, plot: Path | None = None, **options: Any) -> dict[str, Any]:
    """Times an ONNX file beside its dense baseline; with `plot` draws its profile."""
    report = runtime.bench(path, **options)
    if plot is None:
        return report
    from sparsify.runtime.profile_plot import save_profile_plot

    save_profile_plot(report, plot)
    return report | {"plot": str(plot)}


def require_speedup(data: Mapping[str, Any], least: float | None) -> None:
    """Checks the speedups of a bench result.

    Raises:
        CheckFailedError: Some setting's speedup is below `least`.
    """
    if least is None:
        return
    rows = [row for row in data["results"] if row["model"] == "model"]
    if data["speedup"] is None:
        reason = data["baseline"].get("reason", "there is no baseline")
        raise CheckFailedError(f"a speedup of {least:g} is required, and none was measured: {reason}")
    if data["speedup"] < least:
        worst = min(rows, key=lambda row: row["speedup"])
        raise CheckFailedError(
            f"speedup {worst['speedup']:.2f} at batch {worst['batch']}, {worst['threads']} threads "
            f"is below the required {least:g}"
        )


def bench_layer(
    *,
    linear: str | None,
    conv: str | None,
    sparsities: Sequence[float],
    pattern: str,
    batches: Sequence[int],
    threads: int,
    duration: float,
) -> dict[str, Any]:
    """Times one sparse layer beside ONNX Runtime's dense one."""
    return runtime.bench_layer(
        linear=linear,
        conv=conv,
        sparsities=sparsities,
        pattern=pattern,
        batches=batches,
        threads=threads,
        seconds=duration,
    )
