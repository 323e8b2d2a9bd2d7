"""Distillation: the outputs of a teacher, as a rule the dense model, beside the targets of the data."""

from __future__ import annotations

from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparsify.errors import UserError
from sparsify.train.calling import predict
from sparsify.train.data import Batch, Data, checksum
from sparsify.train.objective import IGNORED


class Distillation:
    """The teacher's part of the loss: (1 − α) · loss + α · distillation.

    For classes and tokens the distillation is T² · KL(softmax(teacher / T) ‖ softmax(student / T)), the mean
    over targets that count; for regression the mean squared difference of the outputs.

    Args:
        teacher: Runs in eval mode and without gradients; no weight of it changes.
        weight: α, in [0, 1].
        temperature: T, above 0.

    Source: Hinton, Vinyals and Dean, "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531).
    """

    def __init__(self, teacher: nn.Module, *, weight: float, temperature: float) -> None:
        self.teacher, self.weight, self.temperature = teacher, weight, temperature
        self._training = teacher.training

    def start(self, student: nn.Module, data: Data, device: torch.device) -> None:
        """Moves the teacher to the device, in eval mode, and runs both models on two test examples.

        Raises:
            UserError: The teacher shares weights with the student, does not take the data, or its outputs
                have another shape.
        """
        own = {id(parameter) for parameter in student.parameters()}
        if any(id(parameter) in own for parameter in self.teacher.parameters()):
            raise UserError(
                "the teacher shares parameters with the model that is trained, so it would change with it; "
                "give a copy (copy.deepcopy(model)) or its file"
            )
        self.teacher.to(device).eval()
        batch = data.test.batch(torch.arange(min(2, len(data.test)))).to(device)
        training = student.training
        try:
            given = self._predict(batch)
        except (RuntimeError, TypeError, IndexError, ValueError) as error:
            reason = str(error).strip().splitlines()[0]
            raise UserError(f"the teacher does not run on {data.name}: {reason}") from error
        with torch.no_grad():
            shape = tuple(predict(student.eval(), batch).shape)
        student.train(training)
        if tuple(given.shape) != shape:
            raise UserError(
                f"the teacher returns {tuple(given.shape)} where the model returns {shape}: distillation "
                "compares them one by one; take a teacher with the same classes or values"
            )

    def stop(self) -> None:
        """Gives the teacher its training mode back."""
        self.teacher.train(self._training)

    def __call__(
        self, loss: Tensor, output: Tensor, batch: Batch, data: Data, precision: AbstractContextManager[None]
    ) -> Tensor:
        """The loss with the teacher's part, a scalar.

        Args:
            loss: Of the targets.
            output: The student's: [N, classes], [N, T, vocabulary], or values.
            batch: What the student was given.
            data: Its task says what is compared.
            precision: The autocast that the student ran under.
        """
        with precision:
            teacher = self._predict(batch)
        if data.task == "regression":
            part = F.mse_loss(output.float(), teacher.float())
        else:
            part = _divergence(output, teacher, batch.targets, self.temperature)
        return (1 - self.weight) * loss + self.weight * part

    def identity(self) -> dict[str, float | int]:
        """What a resumed run must agree in."""
        tensors = [tensor.detach().cpu() for tensor in self.teacher.state_dict().values()]
        return {
            "weight": self.weight,
            "temperature": self.temperature,
            "teacher": checksum(tensors),
        }

    @torch.no_grad()
    def _predict(self, batch: Batch) -> Tensor:
        return predict(self.teacher, batch)


def _divergence(student: Tensor, teacher: Tensor, targets: Tensor, temperature: float) -> Tensor:
    classes = student.shape[-1]
    ours = F.log_softmax(student.reshape(-1, classes).float() / temperature, dim=-1)
    theirs = F.log_softmax(teacher.reshape(-1, classes).float() / temperature, dim=-1)
    rows = F.kl_div(ours, theirs, reduction="none", log_target=True).sum(-1)
    counts = (targets.reshape(-1) != IGNORED).to(rows.dtype)
    return temperature**2 * (rows * counts).sum() / counts.sum().clamp(min=1)
