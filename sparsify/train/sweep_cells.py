"""Cells of a sweep: what each one is, and how one is run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from itertools import product
from typing import Any, Literal

import torch
from torch import Tensor

from sparsify.graph.traced import Traced
from sparsify.masks import masked_parameters
from sparsify.passes.scaled import ScalingOptions
from sparsify.scaling import Base, Parameterization
from sparsify.train.data import Batch, Data, Examples
from sparsify.train.loop import TrainingDivergedError
from sparsify.train.options import Options
from sparsify.train.setting_up import make_algorithm, make_optimizer
from sparsify.train.tuning import finetune
from sparsify.train.variants import Variant, Variants, describe


@dataclass(frozen=True)
class Cell:
    """One run of a sweep."""

    parameterization: Parameterization
    density: float
    width: float | Literal["isoflop"] | None
    lr: float
    seed: int

    @property
    def variant(self) -> Variant:
        """Density and width."""
        return Variant(self.density, self.width)


@dataclass(frozen=True)
class Training:
    """How every cell is trained.

    Attributes:
        steps: Optimizer steps.
        batch_size: Examples a step.
        optimizer: `adamw` or `sgd`.
        method: How masked models train: `static`, `rigl`, …; a model without masks trains dense.
        weight_decay: Base weight decay.
        warmup: Share of the run for the linear warm-up; a cosine follows.
        clip: Largest norm of all gradients together.
        test_examples: Test examples that the final loss is taken over, evenly spread; None for all.
        sequence_length: Bytes in a window of `text` data.
        plan_options: Options of the plans besides family, sparsity and width.
        initial_density: Density that masks start with, where the method prunes them to the cell's (`gmp`).
        density_exponent: As for `transform`, like all that follow.
        base: What scaling is relative to, where it is not the dense model.
        lr_behind_batchnorm: Correct learning rates behind batch normalisations too.
        input_multiplier: α_in.
        output_multiplier: α_out.
        base_std: Standard deviations of initial weights by parameter name.
    """

    steps: int = 150
    batch_size: int = 16
    optimizer: str = "adamw"
    method: str = "static"
    weight_decay: float = 0.0
    warmup: float = 0.1
    clip: float | None = None
    test_examples: int | None = 512
    sequence_length: int = 128
    plan_options: Mapping[str, Any] = field(default_factory=dict)
    initial_density: float | None = None
    density_exponent: float | None = None
    base: Base | None = None
    lr_behind_batchnorm: bool = False
    input_multiplier: float = 1.0
    output_multiplier: float = 1.0
    base_std: Mapping[str, float] | None = None

    def variants(self, traced: Traced) -> Variants:
        """Variants of a dense model, planned and scaled as these options say."""
        return Variants(traced, self.plan_options, self._scaling, self.base_std, self.initial_density)

    @property
    def _scaling(self) -> ScalingOptions:
        return ScalingOptions(
            density_exponent=self.density_exponent,
            base=self.base,
            lr_behind_batchnorm=self.lr_behind_batchnorm,
            input_multiplier=self.input_multiplier,
            output_multiplier=self.output_multiplier,
        )

    def options(self, method: str) -> dict[str, Any]:
        """Options of `finetune`."""
        return {
            "method": method,
            "steps": self.steps,
            "batch_size": self.batch_size,
            "optimizer": self.optimizer,
            "weight_decay": self.weight_decay,
            "warmup": self.warmup,
            "clip": self.clip,
            "evaluate_every": self.steps,
        }

    def describe(self) -> dict[str, Any]:
        """A JSON object for reports; the base as a digest."""
        return self._plain() | describe(self._scaling, self.base_std)

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back to an equal value."""
        return self._plain() | {"base": None if self.base is None else self.base.to_json()}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Training:
        """Reads what `to_json` wrote.

        Raises:
            UserError: The base in it cannot be read.
        """
        base = None if data["base"] is None else Base.from_json(data["base"])
        return cls(**{**data, "base": base})

    def _plain(self) -> dict[str, Any]:
        return {entry.name: getattr(self, entry.name) for entry in fields(self)}

    def check(self) -> None:
        """Checks the options.

        Raises:
            UserError: One is out of range.
        """
        Options.parse(self.options(self.method))

    def check_method(self, variants: Variants, data: Data, cell: Cell) -> None:
        """Checks that the method can train a cell's model, on the model itself.

        Raises:
            UserError: It cannot: the pattern is not its own, or there is nothing to prune.
        """
        model = variants.model(cell.variant, cell.parameterization, cell.seed)
        if masked_parameters(model):
            options = Options.parse({**self.options(self.method), "lr": cell.lr}).resolve(data)
            make_algorithm(model, make_optimizer(model, options), options)


@dataclass(frozen=True)
class Outcome:
    """What a cell's run gave.

    Attributes:
        status: `finished`, or `diverged` where a loss was not finite.
        loss: Test loss of the last step; None where it diverged.
        metrics: All metrics of the last step.
        reason: What diverged, and at which step.
        seconds: Time of the run.
    """

    status: Literal["finished", "diverged"]
    loss: float | None
    metrics: Mapping[str, float]
    reason: str | None
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """A JSON-able form."""
        return asdict(self)


def grid(
    parameterizations: tuple[Parameterization, ...],
    densities: tuple[float, ...],
    widths: tuple[float | Literal["isoflop"] | None, ...],
    lrs: tuple[float, ...],
    seeds: int,
) -> tuple[Cell, ...]:
    """All cells; seed by seed, so that a sweep that is cut short has whole curves."""
    return tuple(
        Cell(parameterization, density, width, lr, seed)
        for seed, parameterization, width, density, lr in product(
            range(seeds), parameterizations, widths, densities, lrs
        )
    )


def same_runs(variants: Variants, cells: tuple[Cell, ...]) -> tuple[tuple[Cell, ...], ...]:
    """Groups cells whose runs are equal: at the given widths μP is SP, and all are where nothing changes."""
    groups: dict[Any, list[Cell]] = {}
    for cell in cells:
        same = variants.same(cell.variant, cell.parameterization)
        groups.setdefault((same, cell.lr, cell.seed), []).append(cell)
    return tuple(tuple(group) for group in groups.values())


def run_cell(variants: Variants, data: Data, cell: Cell, training: Training, device: str = "auto") -> Outcome:
    """Draws a cell's model, trains and tests it."""
    model = variants.model(cell.variant, cell.parameterization, cell.seed)
    method = training.method if masked_parameters(model) else "dense"
    options = training.options(method)
    try:
        found = finetune(model, data, lr=cell.lr, seed=cell.seed, progress=False, device=device, **options)
    except TrainingDivergedError as error:
        return Outcome("diverged", None, {}, str(error).partition(";")[0], 0.0)
    seconds = float(found.history[-1]["seconds"])
    return Outcome("finished", found.metrics["loss"], found.metrics, None, seconds)


@dataclass(frozen=True)
class Sample:
    """Evenly spread examples of a collection.

    Attributes:
        examples: The collection.
        size: How many are taken.
    """

    examples: Examples
    size: int

    def __len__(self) -> int:
        return min(self.size, len(self.examples))

    def batch(self, index: Tensor) -> Batch:
        """See `Examples.batch`."""
        return self.examples.batch(index * len(self.examples) // len(self))

    def digest(self) -> int:
        """See `Examples.digest`."""
        return self.examples.digest()


def sampled(data: Data, test_examples: int | None) -> Data:
    """The same data with at most so many test examples."""
    if test_examples is None or test_examples >= len(data.test):
        return data
    return Data(data.name, data.task, data.train, Sample(data.test, test_examples))


def set_threads(threads: int) -> None:
    """Threads of torch in this process."""
    torch.set_num_threads(threads)
