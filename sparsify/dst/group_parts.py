"""Where the members of groups lie in a parameter: along one dimension of it, or in tiles of its matrix."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from sparsify.errors import UserError
from sparsify.masks import from_matrix, to_matrix


@dataclass(frozen=True, eq=False)
class Part(ABC):
    """The members of some groups in one parameter.

    Attributes:
        fqn: Path of the parameter in the user's model.
        owner: Module that holds it.
        name: Its name there.
    """

    fqn: str
    owner: nn.Module
    name: str

    @property
    def param(self) -> nn.Parameter:
        """The parameter itself."""
        found = self.owner._parameters[self.name]
        if found is None:
            raise UserError(f"{self.fqn} was removed from its module; make the groups again")
        return found

    @abstractmethod
    def add_totals(self, values: Tensor, totals: Tensor) -> None:
        """Adds up values over each group's members.

        Args:
            values: Of the parameter's shape.
            totals: One entry a group; added to in place.
        """

    @abstractmethod
    def spread(self, per_group: Tensor) -> Tensor:
        """Gives each member its group's entry.

        Args:
            per_group: One entry a group, and a last one for what belongs to none.

        Returns:
            A tensor that broadcasts to the parameter's shape.
        """


@dataclass(frozen=True, eq=False)
class AxisPart(Part):
    """Whole slices along one dimension: rows of a weight, its columns, entries of a bias.

    Attributes:
        axis: The dimension.
        ids: Group of every place along it; -1 where a place belongs to none.
    """

    axis: int
    ids: Tensor

    def add_totals(self, values: Tensor, totals: Tensor) -> None:
        """See `Part.add_totals`."""
        others = [axis for axis in range(values.ndim) if axis != self.axis]
        along = values.sum(others) if others else values
        ids = self.ids.to(values.device)
        owned = ids >= 0
        totals.index_add_(0, ids[owned], along[owned].to(totals.dtype))

    def spread(self, per_group: Tensor) -> Tensor:
        """See `Part.spread`."""
        shape = [1] * self.param.ndim
        shape[self.axis] = -1
        return per_group[self.ids.to(per_group.device)].view(shape)


@dataclass(frozen=True, eq=False)
class TilePart(Part):
    """Tiles of r outputs × c columns of the weight's matrix [out, kernel·in]; 1×1 is single weights.

    Attributes:
        rows: r.
        columns: c.
        first: Number of the first tile's group; the others follow, row by row.
    """

    rows: int
    columns: int
    first: int

    @property
    def _grid(self) -> tuple[int, int]:
        outputs = self.param.shape[0]
        return outputs // self.rows, self.param.numel() // outputs // self.columns

    @property
    def count(self) -> int:
        """Tiles."""
        down, across = self._grid
        return down * across

    def add_totals(self, values: Tensor, totals: Tensor) -> None:
        """See `Part.add_totals`."""
        down, across = self._grid
        tiles = to_matrix(values).reshape(down, self.rows, across, self.columns).sum((1, 3))
        totals[self.first : self.first + self.count] += tiles.flatten().to(totals.dtype)

    def spread(self, per_group: Tensor) -> Tensor:
        """See `Part.spread`."""
        down, across = self._grid
        tiles = per_group[self.first : self.first + self.count].view(down, 1, across, 1)
        matrix = tiles.expand(down, self.rows, across, self.columns)
        return from_matrix(matrix.reshape(self.param.shape[0], -1), self.param.shape)


def coverage(part: Part, groups: int) -> Tensor:
    """Which entries of its parameter a part covers, as a bool tensor of the parameter's shape."""
    inside = torch.ones(groups + 1, dtype=torch.bool, device=part.param.device)
    inside[-1] = False
    return part.spread(inside).expand(part.param.shape)
