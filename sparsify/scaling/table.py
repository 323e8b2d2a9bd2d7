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

Adam's ε follows the size of gradients (CompleteP, arXiv 2505.01618): an entry's gradient holds 1/m_out, that
of a readout 1/m_in through its forward multiplier. Density leaves it alone, since initial weights make up for
it on the way back as they do on the way forward. The multipliers α_in and α_out of the user's choice stand in
the forward column of inputs, embeddings and readouts, and change no other factor.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
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
        adam_eps: Factor on the ε of Adam and AdamW.
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
    adam_eps: float = 1.0


@dataclass(frozen=True)
class AttentionScale:
    """The factor on the logits of one attention whose head size is not the base's.

    Logits are q·kᵀ times a factor of the model's own, s(d) = 1/√d as a rule. Over training q and k align, so
    that q·k grows with d and not with √d: μP wants s·d to stay, and `factor` = s_base·d_base / (s·d).

    Attributes:
        node: The graph node that multiplies queries with keys.
        head_size_base: d in the base.
        head_size: d in the rewritten model.
        factor: What the queries are multiplied by.
    """

    node: str
    head_size_base: int
    head_size: int
    factor: float


@dataclass(frozen=True)
class Scaling:
    """The scaling of a whole model, fixed when it is transformed.

    Attributes:
        parameterization: `supar`, `mup` or `sp`.
        density_exponent: γ in m_ρ = density^γ.
        tensors: One entry for every parameter.
        lr_behind_batchnorm: Whether learning rates are corrected behind batch normalisations too.
        input_multiplier: α_in, on what embeddings and first layers put out.
        output_multiplier: α_out, on what readouts put out.
        attention: Attentions whose logits are multiplied.
    """

    parameterization: Parameterization
    density_exponent: float
    tensors: tuple[TensorScale, ...]
    lr_behind_batchnorm: bool = False
    input_multiplier: float = 1.0
    output_multiplier: float = 1.0
    attention: tuple[AttentionScale, ...] = ()

    @cached_property
    def _by_fqn(self) -> Mapping[str, TensorScale]:
        return {tensor.fqn: tensor for tensor in self.tensors}

    def __getitem__(self, fqn: str) -> TensorScale:
        return self._by_fqn[fqn]

    def __contains__(self, fqn: object) -> bool:
        return fqn in self._by_fqn

    def check(self) -> None:
        """Checks the options.

        Raises:
            UserError: When one is out of range.
        """
        if self.parameterization not in get_args(Parameterization):
            raise UserError(f"parameterization '{self.parameterization}' is not one of supar, mup, sp")
        if not 0.0 < self.density_exponent <= 1.0:
            raise UserError(f"density_exponent must lie in (0, 1], got {self.density_exponent}")
        for name in ("input_multiplier", "output_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise UserError(f"{name} must be positive and finite, got {value}")

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back to an equal value."""
        return {
            "version": _VERSION,
            "parameterization": self.parameterization,
            "density_exponent": self.density_exponent,
            "tensors": [asdict(tensor) for tensor in self.tensors],
            "lr_behind_batchnorm": self.lr_behind_batchnorm,
            "input_multiplier": self.input_multiplier,
            "output_multiplier": self.output_multiplier,
            "attention": [asdict(one) for one in self.attention],
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
            given = cls(
                parameterization=data["parameterization"],
                density_exponent=float(data["density_exponent"]),
                tensors=tuple(TensorScale(**tensor) for tensor in data["tensors"]),
                lr_behind_batchnorm=bool(data.get("lr_behind_batchnorm", False)),
                input_multiplier=float(data.get("input_multiplier", 1.0)),
                output_multiplier=float(data.get("output_multiplier", 1.0)),
                attention=tuple(AttentionScale(**one) for one in data.get("attention", ())),
            )
            given.check()
            return given
        except (KeyError, TypeError, ValueError, UserError) as error:
            raise InvalidPlanError(f"the stored scaling cannot be read: {error}") from error


def scaling_table(
    facts: Sequence[TensorFacts],
    *,
    parameterization: Parameterization = "supar",
    density_exponent: float = 1.0,
    lr_behind_batchnorm: bool = False,
    input_multiplier: float = 1.0,
    output_multiplier: float = 1.0,
    attention: Sequence[AttentionScale] = (),
) -> Scaling:
    """Multipliers for every tensor, from the realised widths and densities.

    Args:
        facts: One entry for every parameter.
        parameterization: `supar` corrects for width and density, `mup` for width only, `sp` for nothing.
        density_exponent: γ in m_ρ = density^γ, 0 < γ ≤ 1. Dynamic sparse training wants less than 1: there
            the full correction goes too far.
        lr_behind_batchnorm: Also correct the learning rate of weights whose output is batch-normalised. They
            are scale-invariant, so that weight decay undoes most of it; off by default.
        input_multiplier: α_in, in every parameterization.
        output_multiplier: α_out, in every parameterization.
        attention: Attentions of another head size than the base's; left alone by `sp`.

    Raises:
        UserError: When an option is out of range.
    """
    blank = Scaling(
        parameterization=parameterization,
        density_exponent=density_exponent,
        tensors=(),
        lr_behind_batchnorm=lr_behind_batchnorm,
        input_multiplier=input_multiplier,
        output_multiplier=output_multiplier,
        attention=() if parameterization == "sp" else tuple(attention),
    )
    blank.check()
    return replace(blank, tensors=tuple(_scale(fact, blank) for fact in facts))


def _scale(fact: TensorFacts, options: Scaling) -> TensorScale:
    m_in = fact.fan_in / fact.fan_in_base
    m_out = fact.fan_out / fact.fan_out_base
    m_rho = fact.density**options.density_exponent
    alpha = _alpha(fact.role, options)
    plain = TensorScale(
        fact.fqn, fact.role, m_in, m_out, m_rho, 1.0, 1.0, 1.0, alpha, untuned=fact.untuned, adam_eps=1.0
    )
    if options.parameterization == "sp":
        return plain
    rho = m_rho if options.parameterization == "supar" else 1.0
    forward, gradient = 1.0, 1 / m_out
    if fact.role in _MATRICES:
        variance, forward = 1 / (m_in * rho), fact.multiplier
        c = forward if fact.role == "branch" else 1.0
        adam = variance / (fact.branches * c)
        sgd, gradient = m_out * adam / c, gradient * c
    elif fact.role == "readout":
        variance, adam, sgd, forward, gradient = 1 / rho, 1 / rho, m_in / rho, 1 / m_in, 1 / m_in
    else:
        variance, adam, sgd = 1.0, 1.0, m_out
    if fact.batchnorm_follows and not options.lr_behind_batchnorm:
        adam = sgd = 1.0
    return replace(
        plain,
        init_std=math.sqrt(variance),
        adam_lr=adam,
        sgd_lr=sgd,
        forward=alpha * forward,
        adam_eps=gradient,
    )


def _alpha(role: Role, options: Scaling) -> float:
    if role == "readout":
        return options.output_multiplier
    return options.input_multiplier if role in ("embedding", "input") else 1.0
