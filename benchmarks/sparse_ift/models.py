"""The models: dense base, dense model of a wider shape, and what `transform` makes of the base."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, cast

import torch
from torch import nn

import sparsify
from benchmarks.sparse_ift.runs import Run
from benchmarks.study.models import IMAGE, ResNet
from benchmarks.supar import gpt
from sparsify.graph.traced import Traced
from sparsify.masks import masked_parameters
from sparsify.scaling import Parameterization

SIGMA = 0.04
ALPHA_IN = 8.0
ALPHA_OUT = 2.0
RESNET_MULTIPLE = 2
RIGL_EXPONENT = 0.5
TOLERANCE = 0.002
"""Largest deviation of the FLOPs of a transformed model from the base's, as a share."""


def build(run: Run) -> nn.Module:
    """The model of a run, with weights and masks drawn from its seed."""
    if run.family == "dense":
        return dense(run.model, width_of(run), run.pool, run.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sparsify.transform(
            traced(run.model, run.width, run.pool),
            init="scratch",
            parameterization=cast(Parameterization, run.parameterization),
            density_exponent=_exponent(run),
            base_std=_spread(run),
            seed=run.seed,
            **_plan_options(run.model, run.family, run.sparsity),
        )


def dense(model: str, width: int, pool: bool, seed: int) -> nn.Module:
    """A dense model."""
    if model == "gpt":
        made = gpt.GPT(gpt.GPTShape(width=width), ALPHA_IN, ALPHA_OUT)
        gpt.initialise(made, SIGMA, seed)
        return made
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return ResNet(width, pool)


@lru_cache(maxsize=4)
def traced(model: str, width: int, pool: bool) -> Traced:
    """The trace of a dense model, kept; shapes, multipliers and the spread of weights are read from it."""
    example = torch.zeros(2, gpt.GPTShape().length, dtype=torch.long) if model == "gpt" else IMAGE
    return sparsify.trace(dense(model, width, pool, 0), (example,))


@lru_cache(maxsize=16)
def width_of(run: Run) -> int:
    """Width of a dense run: the base's, or that of the residual stream in the wide family at its sparsity."""
    if not run.sparsity:
        return run.width
    plan = sparsify.plan(
        traced(run.model, run.width, run.pool), **_plan_options(run.model, "wide", run.sparsity)
    )
    if run.model == "resnet":
        return next(layer.shape[0] for layer in plan.layers if layer.fqn == "stem")
    return next(layer.shape[1] for layer in plan.layers if layer.fqn == "tokens")


def costs(model: nn.Module, run: Run) -> dict[str, Any]:
    """FLOPs of the example, relative to the base's, and parameters.

    Raises:
        ValueError: The model was to have the base's FLOPs and has not.
    """
    budget = _dense_flops(run.model, run.width, run.pool)
    if run.family == "dense":
        flops = _dense_flops(run.model, width_of(run), run.pool)
    else:
        flops = cast(Any, model).sparsify.plan.flops.sparse
    ratio = flops / budget
    if run.family != "dense" and abs(ratio - 1) > TOLERANCE:
        raise ValueError(f"{run.family} at {run.sparsity:g} has {ratio:.4f} times the FLOPs of the base")
    masks = [entry.mask for entry in masked_parameters(model).values()]
    stored = sum(parameter.numel() for parameter in model.parameters())
    inactive = sum(int(torch.count_nonzero(~mask)) for mask in masks)
    return {
        "flops_ratio": round(ratio, 5),
        "parameters": stored,
        "active_parameters": stored - inactive,
        "masked_density": 1 - inactive / sum(mask.numel() for mask in masks) if masks else 1.0,
    }


def _dense_flops(model: str, width: int, pool: bool) -> int:
    return sparsify.plan(traced(model, width, pool), family="masked").flops.dense


def _plan_options(model: str, family: str, sparsity: float) -> dict[str, Any]:
    """The ResNet is too narrow for widths in steps of 8; the GPT keeps its own steps."""
    multiple: Mapping[str, Any] = {"multiple": RESNET_MULTIPLE} if model == "resnet" else {}
    return {"family": family, "sparsity": sparsity, **multiple}


def _exponent(run: Run) -> float | None:
    if run.parameterization != "supar":
        return None
    return RIGL_EXPONENT if run.method == "rigl" else 1.0


def _spread(run: Run) -> dict[str, float] | None:
    if run.model != "gpt":
        return None
    return gpt.standard_deviations(cast(gpt.GPT, dense("gpt", run.width, run.pool, 0)), SIGMA)
