"""Sparse variants of one dense model, for studies that compare densities, widths and parameterizations.

The dense model is traced once; a variant is planned and drawn from scratch in well under a second. Variants
of one seed share their random draws tensor by tensor, so that they differ by scale and mask only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, Literal, get_args

import torch
from torch import nn

from sparsify.errors import UserError
from sparsify.graph.facts import Facts
from sparsify.graph.facts import facts as facts_of
from sparsify.graph.traced import Traced
from sparsify.masks import SparseGraphModule
from sparsify.passes import rewrite
from sparsify.passes.scaled import ScalingOptions, scaling_of
from sparsify.passes.starting import drawn_for, starting_plan
from sparsify.pattern_rules import parse_rule
from sparsify.planning import Plan, fit, plan
from sparsify.scaling import Parameterization, Scaling

RULES = ("init", "lr")
_PROBE_DENSITY = 0.5


@dataclass(frozen=True)
class Variant:
    """One density and width of the dense model.

    Attributes:
        density: Kept share of every masked weight.
        width: Factor on every width; None for the given ones, `isoflop` for the factor that keeps the FLOPs.
    """

    density: float
    width: float | Literal["isoflop"] | None = None

    def options(self) -> dict[str, Any]:
        """Options of the plan."""
        sparsity = 1 - self.density
        if self.width == "isoflop":
            return {"family": "wide", "sparsity": sparsity}
        if self.width in (None, 1.0):
            return {"family": "masked", "sparsity": sparsity}
        return {"family": "wide", "sparsity": sparsity, "width": self.width}


class Variants:
    """Makes variants of a traced dense model.

    Args:
        traced: The dense model.
        plan_options: Options of every plan besides family, sparsity and width: scope, only, pattern, ….
        scaling: What `transform` is to take for every variant; its parameterization is not looked at.
        base_std: Standard deviations of initial weights by parameter name, as for `transform`.
        initial_density: Density that masks start with, where training prunes them, as for `transform`.

    Raises:
        UserError: There is no such pattern.
    """

    def __init__(
        self,
        traced: Traced,
        plan_options: Mapping[str, Any] | None = None,
        scaling: ScalingOptions | None = None,
        base_std: Mapping[str, float] | None = None,
        initial_density: float | None = None,
    ) -> None:
        self.traced = traced
        self._options = dict(plan_options or {})
        self._initial_density = initial_density
        self._pattern = parse_rule(self._options.get("pattern", "unstructured"))
        self._scaling = ScalingOptions() if scaling is None else scaling
        self._base_std = dict(base_std or {})
        self._plans: dict[Variant, Plan] = {}
        self._scalings: dict[tuple[Variant, Parameterization], Scaling] = {}

    @cached_property
    def facts(self) -> Facts:
        """The facts of the dense model."""
        return facts_of(self.traced)

    def plan(self, variant: Variant) -> Plan:
        """The plan of a variant; made once.

        Raises:
            UserError: The model has nothing to mask or to widen, an option does not fit, or the pattern
                cannot have the density.
        """
        if variant not in self._plans:
            options = {**self._options, **variant.options()}
            if options["family"] == "masked":
                options.pop("scope", None)
            if not self._can_have(variant.density):
                options.pop("pattern")
            self._plans[variant] = plan(self.traced, facts=self.facts, **options)
        return self._plans[variant]

    def _can_have(self, density: float) -> bool:
        """Whether the pattern has the density; without masks, at density 1, it need not."""
        fixed = self._pattern.density
        if fixed is None or abs(density - fixed) < 1e-6:
            return True
        if density < 1.0:
            raise UserError(
                f"pattern '{self._pattern.name}' keeps {fixed:.4g} of every layer, so it can be compared at "
                f"the densities 1 and {fixed:.4g}, not at {density:.4g}"
            )
        return False

    def masked_layers(self) -> dict[str, str]:
        """Layers that variants of density below 1 mask: fqn to weight, in order of execution.

        Raises:
            UserError: There are none.
        """
        found = self.plan(Variant(self._pattern.density or _PROBE_DENSITY))
        return {layer.fqn: layer.weight for layer in found.layers if layer.masked}

    def behind_batchnorm(self) -> set[str]:
        """Fqns of layers whose output a batch normalisation reads."""
        return {layer.fqn for layer in self.facts.layers if layer.batchnorm_follows}

    def scaling(
        self, variant: Variant, parameterization: Parameterization, rules: Sequence[str] = RULES
    ) -> Scaling:
        """The multipliers that `model` uses."""
        key = (variant, parameterization)
        if key not in self._scalings:
            fitted = fit(self.plan(variant), self.facts, ties=self.traced.ties)
            options = replace(self._scaling, parameterization=parameterization)
            found = scaling_of(self.traced, self.facts, fitted, options, "scratch")
            if self._initial_density is not None:
                start = starting_plan(fitted, self._initial_density)
                drawn = scaling_of(self.traced, self.facts, start, options, "scratch")
                found = drawn_for(found, drawn)
            self._scalings[key] = found
        return without(self._scalings[key], _off(rules))

    def same(
        self, variant: Variant, parameterization: Parameterization, rules: Sequence[str] = RULES
    ) -> Hashable:
        """A key that is equal where two parameterizations make the same model with the same rates.

        So do μP and SP at the base's widths, and all of them where density is 1 too.
        """
        found = self.scaling(variant, parameterization, rules)
        return variant, found.tensors, found.attention

    def model(
        self,
        variant: Variant,
        parameterization: Parameterization,
        seed: int,
        rules: Sequence[str] = RULES,
    ) -> SparseGraphModule:
        """Draws a variant's model in training mode.

        Args:
            variant: Density and width.
            parameterization: `supar`, `mup` or `sp`.
            seed: Seed of weights and masks.
            rules: Which rules of the parameterization are in force; see `switch_off`.
        """
        model = rewrite(
            self.traced,
            self.plan(variant),
            **vars(replace(self._scaling, parameterization=parameterization)),
            seed=seed,
            base_std=self._base_std,
            initial_density=self._initial_density,
            facts=self.facts,
        )
        off = _off(rules)
        if off:
            switch_off(model, off)
        model.train()
        return model


def describe(scaling: ScalingOptions, base_std: Mapping[str, float] | None) -> dict[str, Any]:
    """What the scaling of variants rests on, for reports: a JSON object, with the base as a digest."""
    base = scaling.base
    text = None if base is None else json.dumps(base.to_json(), sort_keys=True).encode()
    return {
        "density_exponent": 1.0 if scaling.density_exponent is None else scaling.density_exponent,
        "base": None if text is None else hashlib.sha256(text).hexdigest()[:16],
        "lr_behind_batchnorm": scaling.lr_behind_batchnorm,
        "input_multiplier": scaling.input_multiplier,
        "output_multiplier": scaling.output_multiplier,
        "base_std": dict(base_std or {}),
    }


def _off(rules: Sequence[str]) -> list[str]:
    return [rule for rule in RULES if rule not in rules]


def switch_off(model: SparseGraphModule, rules: Sequence[str]) -> None:
    """Takes rules of the parameterization out of a freshly drawn model, in place.

    Args:
        model: A model from `transform` that has not been trained.
        rules: `init` undoes the factors on initial weights, `lr` sets the factors on learning rates to 1.
    """
    record = model.sparsify
    if record.scaling is None:
        return
    if "init" in rules:
        _undo_init(model, record.scaling)
    model.sparsify = replace(record, scaling=without(record.scaling, rules))


def without(scaling: Scaling, rules: Sequence[str]) -> Scaling:
    """A scaling with the factors of some rules set to 1."""
    off: dict[str, Any] = {}
    if "init" in rules:
        off |= {"init_std": 1.0}
    if "lr" in rules:
        off |= {"adam_lr": 1.0, "sgd_lr": 1.0}
    return replace(scaling, tensors=tuple(replace(tensor, **off) for tensor in scaling.tensors))


@torch.no_grad()
def _undo_init(model: nn.Module, scaling: Scaling) -> None:
    for name, parameter in model.named_parameters():
        if name not in scaling or scaling[name].init_std == 1.0:
            continue
        active = parameter[parameter != 0]
        if active.numel() and active.min() != active.max():  # constants were never multiplied
            parameter.div_(scaling[name].init_std)


def check_names(values: Sequence[str], known: Sequence[str], what: str) -> tuple[str, ...]:
    """Checks a list of names.

    Raises:
        UserError: One is unknown, or there is none.
    """
    chosen = tuple(dict.fromkeys(values))
    for value in chosen:
        if value not in known:
            raise UserError(f"{what} '{value}' is not one of {', '.join(known)}")
    if not chosen:
        raise UserError(f"no {what} was given; choose from {', '.join(known)}")
    return chosen


def check_parameterizations(values: Sequence[str]) -> tuple[Parameterization, ...]:
    """Checks the names of parameterizations.

    Raises:
        UserError: One is unknown, or there is none.
    """
    return check_names(values, get_args(Parameterization), "parameterization")  # type: ignore[return-value]


def check_densities(values: Sequence[float]) -> tuple[float, ...]:
    """Checks densities, largest first.

    Raises:
        UserError: One lies outside (0, 1], or there is none.
    """
    for value in values:
        if not 0.0 < value <= 1.0:
            raise UserError(f"a density is a kept share in (0, 1], not {value:g}")
    if not values:
        raise UserError("no density was given")
    return tuple(sorted(set(map(float, values)), reverse=True))
