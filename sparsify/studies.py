"""The public verbs of studies: the coordinate check and the sweep, on any model.

`api` knows the order from a file to a sparse file; these two run many such roads beside each other.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from sparsify import api, archive
from sparsify.errors import UserError
from sparsify.graph.traced import Traced
from sparsify.masks.module import SparseGraphModule
from sparsify.train import Data, load_data
from sparsify.train.coord_check import CoordCheck
from sparsify.train.coord_check import coord_check as _coord_check
from sparsify.train.sweep import SweepResult
from sparsify.train.sweep import sweep as _sweep
from sparsify.train.sweep_cells import Training
from sparsify.train.sweep_workers import Workers

_WORKER = "sparsify.sweep_worker"
BaseLike = nn.Module | Traced | api.Base | str | Path | None


def coord_check(
    model: nn.Module | Traced,
    args: Sequence[Any] | str | Data = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    data: str | Data | None = None,
    sequence_length: int = 128,
    base: BaseLike = None,
    **options: Any,
) -> CoordCheck:
    """Checks whether activations keep their size over densities (or widths) while a model starts to train.

    Args:
        model: A dense model, or its trace; it stays as it is.
        args: Example positional inputs; or the data, whose inputs are the example then. Not needed for models
            that were loaded from an archive.
        kwargs: Example keyword inputs.
        data: A data SPEC or the data to train on; None for random inputs and targets made from the trace.
        sequence_length: Bytes in a window of `text` data.
        base: As for `transform`: the small dense model that hyper-parameters were tuned on, its description,
            or the file that `save_base` wrote.
        **options: Options of `sparsify.train.coord_check`: parameterizations, mode (`density`, `width` or
            `isoflop`), densities, widths, steps, seeds, lr, optimizer, rules, batch_size, plot, progress; of
            `transform`: density_exponent, lr_behind_batchnorm, input_multiplier, output_multiplier, base_std;
            and of the plans: only, keep_dense, scope, heads, multiple, pattern.

    Returns:
        Slopes of log mean |activation| by parameterization and layer, and all activations.

    Raises:
        UserError: An option is out of range, or the data does not fit the model.
        UnsupportedModelError: The model cannot be captured.
    """
    example: Sequence[Any] = ()
    if isinstance(args, str | Data):
        data = args
    else:
        example = args
    source = load_data(data, sequence_length=sequence_length) if isinstance(data, str) else data
    traced = _traced(model, example, kwargs, source)
    return _coord_check(traced, source, base=_base(base, example, kwargs, traced), **options)


def sweep(
    model: nn.Module | Traced,
    data: str | Data,
    args: Sequence[Any] = (),
    kwargs: Mapping[str, Any] | None = None,
    *,
    lrs: Sequence[float],
    output: str | Path | None = None,
    workers: int = 1,
    sequence_length: int = 128,
    base: BaseLike = None,
    **options: Any,
) -> SweepResult:
    """Trains sparse variants of a model over a grid of learning rates, densities and parameterizations.

    Args:
        model: A dense model, or its trace; it stays as it is.
        data: A data SPEC, or the data.
        args: Example positional inputs; by default a batch of the data.
        kwargs: Example keyword inputs.
        lrs: Learning rates of the dense base.
        output: Folder of the results. A sweep that was stopped goes on where it was; without it nothing is
            written.
        workers: Processes that run cells at the same time, each on one thread; 1 runs them in this process.
            Several need the data as a SPEC.
        sequence_length: Bytes in a window of `text` data.
        base: As for `transform`: the small dense model that hyper-parameters were tuned on, its description,
            or the file that `save_base` wrote.
        **options: Options of `sparsify.train.sweep`: densities, parameterizations, widths, seeds, progress;
            how each cell is trained: steps, batch_size, optimizer, method, weight_decay, warmup, clip,
            test_examples; plan_options (pattern, only, keep_dense, scope, …); and of `transform`:
            initial_density (for `method="gmp"`), density_exponent, lr_behind_batchnorm, input_multiplier,
            output_multiplier, base_std.

    Returns:
        Curves of loss over learning rate, and the best rate of each.

    Raises:
        UserError: An option is out of range, the data does not fit the model, or the folder holds another
            sweep.
        UnsupportedModelError: The model cannot be captured.
    """
    if workers < 1:
        raise UserError(f"workers must be at least 1, got {workers}")
    if workers > 1 and not isinstance(data, str):
        raise UserError(
            "several workers read the data themselves: give it as a SPEC, for example package.module:function"
        )
    source = load_data(data, sequence_length=sequence_length) if isinstance(data, str) else data
    traced = _traced(model, args, kwargs, source)
    folder = None if output is None else Path(output)
    known = _base(base, args, kwargs, traced)
    options = {"sequence_length": sequence_length, "base": known, **options}
    if workers == 1:
        return _sweep(traced, source, lrs=lrs, output=folder, **options)
    with tempfile.TemporaryDirectory(prefix="sparsify-sweep-") as place:
        file = Path(place) / "model.pt2"
        api.save(archive.wrap(traced), file)

        def pool(training: Training) -> Workers:
            setup = {"model": str(file), "data": data, "training": training.to_json()}
            return Workers([sys.executable, "-m", _WORKER], setup, workers)

        return _sweep(traced, source, lrs=lrs, output=folder, workers=pool, **options)


def _base(
    base: BaseLike, args: Sequence[Any], kwargs: Mapping[str, Any] | None, traced: Traced
) -> api.Base | None:
    return None if base is None else api.as_base(base, args, kwargs, traced)


def dense_trace(file: str | Path) -> Traced:
    """The trace of a dense model in an archive, at the inputs that it records."""
    return _traced(api.load(file), (), None, None)


def _traced(
    model: nn.Module | Traced, args: Sequence[Any], kwargs: Mapping[str, Any] | None, data: Data | None
) -> Traced:
    """The trace of a dense model, at the example given, its archive's, or a batch of the data."""
    if isinstance(model, Traced):
        return model
    api.refuse_rewritten(model)
    if args or kwargs:
        return api.trace(model, args, kwargs)
    if isinstance(model, SparseGraphModule):
        spec = model.sparsify.inputs
        positional, named = spec.example()
        return api.trace(model, positional, named, dynamic_shapes=spec.dynamic_shapes())
    if data is None:
        raise UserError("an example of the model's inputs is needed: give args=, or data=")
    batch = data.train.batch(torch.arange(min(2, len(data.train))))
    return api.trace(model, batch.args, batch.kwargs)
