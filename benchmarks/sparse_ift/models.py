"""The models: dense base, dense model of a wider shape, and what `transform` makes of the base."""

from __future__ import annotations

import warnings
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
from sparsify.planning import Plan
from sparsify.scaling import Parameterization

SIGMA = 0.04
ALPHA_IN = 8.0
ALPHA_OUT = 2.0
RESNET_MULTIPLE = 2
"""The ResNet is too narrow for widths in steps of 8."""
RIGL_EXPONENT = 0.5
TOLERANCE = 0.002
"""Largest deviation of the FLOPs of a transformed model from the base's, as a share."""


def build(run: Run) -> nn.Module:
    """The model of a run, with weights and masks drawn from its seed."""
    if run.family == "dense" and not run.sparsity:
        return dense(run.model, run.width, run.pool, run.seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return sparsify.transform(
            traced(run.model, run.width, run.pool),
            plan=_plan(run.model, run.width, run.pool, run.family, run.sparsity),
            init="scratch",
            parameterization=cast(Parameterization, run.parameterization),
            density_exponent=_exponent(run),
            base_std=_spread(run),
            seed=run.seed,
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
def _plan(model: str, width: int, pool: bool, family: str, sparsity: float) -> Plan:
    """The plan of a family; that of a dense model is the wide family's with every weight kept."""
    base = traced(model, width, pool)
    multiple: dict[str, Any] = {"multiple": RESNET_MULTIPLE} if model == "resnet" else {}
    if family != "dense":
        return sparsify.plan(base, family=family, sparsity=sparsity, **multiple)
    data = sparsify.plan(base, family="wide", sparsity=sparsity, **multiple).to_dict()
    for layer in data["layers"]:
        layer["density"] = 1.0
    return Plan.from_json(data)


def costs(model: nn.Module, run: Run) -> dict[str, Any]:
    """FLOPs of the example, relative to the base's, and parameters.

    Raises:
        ValueError: The model was to have the base's FLOPs and has not.
    """
    flops = None if run.family == "dense" and not run.sparsity else cast(Any, model).sparsify.plan.flops
    ratio = 1.0 if flops is None else flops.ratio
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


def _exponent(run: Run) -> float | None:
    if run.parameterization != "supar":
        return None
    return RIGL_EXPONENT if run.method == "rigl" else 1.0


def _spread(run: Run) -> dict[str, float] | None:
    if run.model != "gpt":
        return None
    return gpt.standard_deviations(cast(gpt.GPT, dense("gpt", run.width, run.pool, 0)), SIGMA)
