"""SμPar: how initialisation, learning rates and forward multipliers follow width and density.

Source: Dey, Bergsma, Hestness, "Sparse maximal update parameterization" (arXiv 2405.15743). With
m_in = fan_in / base fan_in, m_out = fan_out / base fan_out and m_ρ = density^γ, relative to the dense base:

| role                              | init variance  | Adam LR        | SGD LR              | forward |
|-----------------------------------|----------------|----------------|---------------------|---------|
| input, hidden, depthwise, grouped | 1/(m_in · m_ρ) | 1/(m_in · m_ρ) | m_out/(m_in · m_ρ)  | 1       |
| readout                           | 1/m_ρ          | 1/m_ρ          | m_in/m_ρ            | 1/m_in  |
| embedding, free, bias, norm       | 1              | 1              | m_out               | 1       |
| factor, linear branch             | 1/(m_in · m_ρ) | 1/(m_in · m_ρ) | m_out/(m_in · m_ρ)  | 1       |
| branch with a nonlinearity        | 1/(m_in · m_ρ) | 1/(c·n·m_in·m_ρ) | m_out/(c²·n·m_in·m_ρ) | c     |

μP is the same with m_ρ = 1; SP is 1 everywhere. An input layer, a depthwise and a grouped convolution keep
their fan-in, so m_in = 1 there. Linear branches are one matrix, and m_ρ is of their sum. The sum of n others
is multiplied by c (`moments`); with n·m_ρ = 1 the Adam factor is 1/c and that of SGD 1/c², as the gradient
holds c once more. The base of a factor is the dense factorization of the same form, of rank
Din·Dout/(Din+Dout): with m_ρ = 1/n, U has variance ×n, Adam ×n and SGD ×n², V has nothing. Both paths of a
doped layer are multiplied by 1/√2; its sparse part is a hidden weight.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal, get_args

from sparsify.errors import InvalidPlanError, UserError

Role = Literal[
    "input",
    "hidden",
    "readout",
    "depthwise",
    "grouped",
    "norm",
    "bias",
    "embedding",
    "free",
    "branch",
    "factor",
]
Parameterization = Literal["supar", "mup", "sp"]

_VERSION = 1
_MATRICES = ("input", "hidden", "depthwise", "grouped", "branch", "factor")


@dataclass(frozen=True)
class TensorFacts:
    """What the table needs to know of one parameter of the rewritten model.

    Attributes:
        fqn: Path of the parameter in the rewritten model.
        role: Its place in the network.
        fan_in_base: Inputs that one output sums over (kernel size included) in the dense base model.
        fan_in: The same in the rewritten model, zeros included; 1 for norms and biases.
        fan_out_base: Outputs in the base model; the size, for norms and biases.
        fan_out: Outputs in the rewritten model.
        density: Realised density, counted from the mask; 1 without one; that of the sum, for linear branches.
        batchnorm_follows: Whether a batch normalisation takes the layer's output.
        branches: Number of branches with a nonlinearity whose sum this tensor is part of.
        multiplier: Factor on what the tensor's layer adds to the forward pass, before any for width.
        untuned: Whether no learning rate is known to transfer from the given model.
    """

    fqn: str
    role: Role
    fan_in_base: float
    fan_in: int
    fan_out_base: float
    fan_out: int
    density: float = 1.0
    batchnorm_follows: bool = False
    branches: int = 1
    multiplier: float = 1.0
    untuned: bool = False


@dataclass(frozen=True)
class TensorScale:
    """Multipliers of one parameter, relative to its dense base.

    Attributes:
        fqn: Path of the parameter in the rewritten model.
        role: Its place in the network.
        m_in: Ratio of fan-ins.
        m_out: Ratio of fan-outs.
        m_rho: Density to the power of the density exponent.
        init_std: Factor on the standard deviation of the initial weights.
        adam_lr: Factor on the learning rate of Adam and AdamW.
        sgd_lr: Factor on the learning rate of SGD.
        forward: Factor on the layer's output before its bias, in the graph; on the sum, of a branch.
        untuned: Whether the factors are relative to a base that is not the given model: its tuned learning
            rate says nothing about this tensor (the factors of a factorized layer).
    """

    fqn: str
    role: Role
    m_in: float
    m_out: float
    m_rho: float
    init_std: float
    adam_lr: float
    sgd_lr: float
    forward: float
    untuned: bool = False


@dataclass(frozen=True)
class Scaling:
    """The scaling of a whole model, fixed when it is transformed.

    Attributes:
        parameterization: `supar`, `mup` or `sp`.
        density_exponent: γ in m_ρ = density^γ.
        tensors: One entry for every parameter.
    """

    parameterization: Parameterization
    density_exponent: float
    tensors: tuple[TensorScale, ...]

    @cached_property
    def _by_fqn(self) -> Mapping[str, TensorScale]:
        return {tensor.fqn: tensor for tensor in self.tensors}

    def __getitem__(self, fqn: str) -> TensorScale:
        return self._by_fqn[fqn]

    def __contains__(self, fqn: object) -> bool:
        return fqn in self._by_fqn

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back to an equal value."""
        return {
            "version": _VERSION,
            "parameterization": self.parameterization,
            "density_exponent": self.density_exponent,
            "tensors": [asdict(tensor) for tensor in self.tensors],
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Scaling:
        """Reads what `to_json` wrote.

        Raises:
            InvalidPlanError: When the object is of another version, or misses or mistypes a field.
        """
        if data.get("version") != _VERSION:
            raise InvalidPlanError(f"scaling of version {data.get('version')}; this package reads {_VERSION}")
        try:
            _check(data["parameterization"], float(data["density_exponent"]))
            tensors = tuple(TensorScale(**tensor) for tensor in data["tensors"])
            return cls(data["parameterization"], float(data["density_exponent"]), tensors)
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise InvalidPlanError(f"the stored scaling cannot be read: {error}") from error


def scaling_table(
    facts: Sequence[TensorFacts],
    *,
    parameterization: Parameterization = "supar",
    density_exponent: float = 1.0,
    lr_behind_batchnorm: bool = False,
) -> Scaling:
    """Multipliers for every tensor, from the realised widths and densities.

    Args:
        facts: One entry for every parameter.
        parameterization: `supar` corrects for width and density, `mup` for width only, `sp` for nothing.
        density_exponent: γ in m_ρ = density^γ, 0 < γ ≤ 1. Dynamic sparse training wants less than 1: there
            the full correction goes too far.
        lr_behind_batchnorm: Also correct the learning rate of weights whose output is batch-normalised. They
            are scale-invariant, so that weight decay undoes most of it; off by default.

    Raises:
        UserError: When an option is out of range.
    """
    _check(parameterization, density_exponent)
    tensors = tuple(_scale(fact, parameterization, density_exponent, lr_behind_batchnorm) for fact in facts)
    return Scaling(parameterization, density_exponent, tensors)


def _check(parameterization: str, density_exponent: float) -> None:
    if parameterization not in get_args(Parameterization):
        raise UserError(f"parameterization '{parameterization}' is not one of supar, mup, sp")
    if not 0.0 < density_exponent <= 1.0:
        raise UserError(f"density_exponent must lie in (0, 1], got {density_exponent}")


def _scale(
    fact: TensorFacts, parameterization: Parameterization, exponent: float, lr_behind_batchnorm: bool
) -> TensorScale:
    m_in = fact.fan_in / fact.fan_in_base
    m_out = fact.fan_out / fact.fan_out_base
    m_rho = fact.density**exponent
    if parameterization == "sp":
        return TensorScale(fact.fqn, fact.role, m_in, m_out, m_rho, 1.0, 1.0, 1.0, 1.0, fact.untuned)
    rho = m_rho if parameterization == "supar" else 1.0
    if fact.role in _MATRICES:
        variance, forward = 1 / (m_in * rho), fact.multiplier
        summed = fact.branches * (forward if fact.role == "branch" else 1.0)
        adam = variance / summed
        sgd = m_out * adam / (forward if fact.role == "branch" else 1.0)
    elif fact.role == "readout":
        variance, adam, sgd, forward = 1 / rho, 1 / rho, m_in / rho, 1 / m_in
    else:
        variance, adam, sgd, forward = 1.0, 1.0, m_out, 1.0
    if fact.batchnorm_follows and not lr_behind_batchnorm:
        adam = sgd = 1.0
    return TensorScale(
        fact.fqn, fact.role, m_in, m_out, m_rho, math.sqrt(variance), adam, sgd, forward, fact.untuned
    )
