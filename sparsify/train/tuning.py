"""Fine-tuning as one call: model and data in, trained model and metrics out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from sparsify.dst.planned import plan_of
from sparsify.errors import UserError
from sparsify.masks import masked_parameters
from sparsify.train.data import Data
from sparsify.train.distill import Distillation
from sparsify.train.history import Row
from sparsify.train.loop import Run
from sparsify.train.objective import make_loss
from sparsify.train.options import Options
from sparsify.train.setting_up import choose_device
from sparsify.train.sources import load_data


@dataclass(frozen=True)
class FinetuneResult:
    """What a run gives.

    Attributes:
        metrics: Test metrics of the last step (with `keep="best"` of the best one), and `train_loss`, the
            last batch's.
        density: Share of active entries over all masked weights; 1 without masks.
        flops: Of the model as its masks are now, where its plan is known and the method masks.
        flops_planned: What they are to be; methods that move weights between layers drift from it.
        events: Abrupt changes that the method made: the hard finish of group sparsity, with the test metrics
            `before` and `after` it.
        output: The archive that the caller is to write, if any.
        history: Rows of the run: step, epoch, lr, loss, gradient_norm, density, churn, seconds, and test
            metrics now and then.
        model: The trained model, the one that was given.
        example_args: Two training examples' inputs, for tracing a plain module.
        example_kwargs: Those that go by name.
        checkpoints: Folder of `last.safetensors`, `best.safetensors`, `log.csv` and `log.png`, if any.
    """

    metrics: dict[str, float]
    density: float
    flops: int | None
    flops_planned: int | None
    events: tuple[Mapping[str, Any], ...]
    output: Path | None
    history: tuple[Row, ...]
    model: nn.Module
    example_args: tuple[Tensor, ...]
    example_kwargs: Mapping[str, Tensor]
    checkpoints: Path | None


def finetune(
    model: nn.Module,
    data: str | Data,
    *,
    output: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    device: str = "auto",
    sequence_length: int = 128,
    distill: nn.Module | None = None,
    keep: Literal["last", "best"] = "last",
    tensorboard: bool = False,
    **options: Any,
) -> FinetuneResult:
    """Trains a model in place, with fixed or changing masks.

    Parameter groups follow the parameterization stored in the model. Checkpoints go to `<output>.ckpt/`; the
    archive itself is the caller's to write. The result is the model of the last step unless `keep="best"`:
    choosing by the test examples flatters the metrics.

    Args:
        model: A transformed or loaded model, or any module with `method="dense"`.
        data: A SPEC (`digits`, `fashion-mnist[:DIR]`, `npz:FILE`, `text:FILE_OR_DIR`,
            `package.module:function`), or the data itself.
        output: Where the trained model will be written; None for a run without checkpoints.
        resume: Go on from the last checkpoint, to the same numbers bit for bit; start where there is none.
        progress: Show a progress bar on stderr.
        device: `auto`, `cpu`, `cuda`, ….
        sequence_length: Bytes in a window of `text` data.
        distill: A teacher, as a rule the dense model, whose outputs count beside the targets.
        keep: Which weights the model ends with: the `last` step's, or those with the `best` test metric
            among the sparsest evaluated.
        tensorboard: Also write TensorBoard events to `<output>.ckpt/tensorboard`.
        **options: Fields of `Options`: method, epochs, steps, batch_size, accumulate, optimizer, lr,
            weight_decay, momentum, schedule, warmup, clip, loss, label_smoothing, precision, distill_weight,
            temperature, seed, evaluate_every, update_every, drop_fraction, stop_fraction, method_options.

    Returns:
        Metrics, density, history and the trained model. torch's random generators are left as they were.

    Raises:
        UserError: An option, SPEC or checkpoint that does not fit.
        TrainingDivergedError: A loss, gradient or weight is not finite any more; the last good checkpoint is
            kept.
    """
    if keep not in ("last", "best"):
        raise UserError(f"keep is 'last' or 'best', got {keep!r}")
    parsed = Options.parse(options)
    place = choose_device(device)
    source = load_data(data, sequence_length=sequence_length) if isinstance(data, str) else data
    loss = make_loss(source, parsed.loss, parsed.label_smoothing)
    teacher = None
    if distill is not None:
        teacher = Distillation(distill, weight=parsed.distill_weight, temperature=parsed.temperature)
    with torch.random.fork_rng(devices=[place] if place.type == "cuda" else []):
        run = Run(
            model,
            source,
            parsed.resolve(source),
            loss,
            None if output is None else Path(output),
            place,
            distillation=teacher,
            tensorboard=tensorboard,
        )
        if resume:
            run.resume()
        run.train(progress)
        if keep == "best":
            run.use_best()
    return _result(run)


def _result(run: Run) -> FinetuneResult:
    entries = masked_parameters(run.model).values()
    active = sum(int(torch.count_nonzero(entry.mask)) for entry in entries)
    batch = run.data.train.batch(torch.arange(min(2, len(run.data.train))))
    plan = plan_of(run.model)
    return FinetuneResult(
        metrics={**run.metrics, "train_loss": run.loss},
        density=active / sum(entry.mask.numel() for entry in entries) if entries else 1.0,
        flops=None if run.algorithm is None else run.algorithm.flops,
        flops_planned=None if run.algorithm is None or plan is None else plan.flops.sparse,
        events=tuple(run.events),
        output=run.output,
        history=tuple(run.log.history.rows),
        model=run.model,
        example_args=batch.args,
        example_kwargs=batch.kwargs,
        checkpoints=run.folder,
    )
