"""Packed weights on a device: torch tensors, for the forward product and both gradients.

The positions stay, the values may change at every step: `refreshed` gathers them from a dense weight again,
`dense` puts values, or their gradients, back. Indices of columns take 16 bits where 16 bits reach (stored as
int16, read without sign), and 32 above.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from sparsify.errors import UserError


@dataclass(frozen=True)
class Packed:
    """What all layouts share.

    Attributes:
        shape: Rows (outputs) and columns (inputs) of the dense weight.
        values: Stored weights; the shape is the layout's.
        positions: int32 or int64, of the shape of `values`: row · columns + column of each in the dense
            weight; -1 where a layout stores a zero beyond the weight's edge.
    """

    shape: tuple[int, int]
    values: Tensor
    positions: Tensor

    @property
    def layout(self) -> str:
        """Name of the layout, as `packing.pack` takes it."""
        return type(self).__name__.lower()

    @property
    def device(self) -> torch.device:
        """Where the tensors lie."""
        return self.values.device

    @property
    def nbytes(self) -> int:
        """Bytes that one forward product reads of the packed weight."""
        return sum(tensor.nbytes for tensor in self.forward_tensors)

    @property
    def forward_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the forward product reads."""
        return (self.values,)

    def to(self, device: torch.device | str) -> Self:
        """The same on another device."""
        moved: dict[str, Any] = {name: _moved(value, device) for name, value in vars(self).items()}
        return dataclasses.replace(self, **moved)

    def gathered(self, weight: Tensor) -> Tensor:
        """The entries of a dense tensor `[rows, columns]` at the stored positions, in the type of `weight`.

        Raises:
            UserError: The tensor has another shape.
        """
        if tuple(weight.shape) != self.shape:
            raise UserError(
                f"a weight of shape {list(weight.shape)} does not fit one packed as {list(self.shape)}"
            )
        flat = torch.cat([weight.reshape(-1), weight.new_zeros(1)]) if self.padded else weight.reshape(-1)
        places = self.positions.reshape(-1)
        if self.padded:
            places = torch.where(places < 0, weight.numel(), places)
        return flat.index_select(0, places).reshape(self.positions.shape)

    def refreshed(self, weight: Tensor) -> Self:
        """The same positions with the values of a dense weight `[rows, columns]`, in the stored type.

        Raises:
            UserError: The weight has another shape.
        """
        return self.with_values(self.gathered(weight.detach()).to(self.values.dtype))

    def with_values(self, values: Tensor) -> Self:
        """The same positions with other values, of the shape of `values`."""
        return dataclasses.replace(self, values=values.contiguous())

    def dense(self, values: Tensor | None = None) -> Tensor:
        """A dense tensor `[rows, columns]` with values, such as a gradient, at the stored positions.

        Args:
            values: Of the shape of `self.values`, which is the default.
        """
        source = (self.values if values is None else values).reshape(-1)
        result = torch.zeros(self.shape[0] * self.shape[1] + 1, dtype=source.dtype, device=source.device)
        # A negative index counts from the end: what lies beyond the edge goes to the extra element.
        result[self.positions.reshape(-1).long()] = source
        return result[:-1].reshape(self.shape)

    @property
    def padded(self) -> bool:
        """Whether some values lie beyond the weight's edge."""
        return False


@dataclass(frozen=True)
class Rows:
    """Compressed rows of one orientation.

    Attributes:
        pointers: int32 `[rows + 1]`: first entry of each row; None where every row has `longest` entries.
        columns: int16 (without sign) or int32 `[entries]`, ascending inside a row.
        values: `[entries]`.
        longest: Entries of the longest row.
    """

    pointers: Tensor | None
    columns: Tensor
    values: Tensor
    longest: int


@dataclass(frozen=True)
class Gathering(Packed):
    """Layouts of single weights: their transposed index is compressed rows in either case.

    Attributes:
        transposed: Compressed columns of the weight; None when packed for inference.
        order: int32 or int64 `[entries]`: which value each entry of `transposed` is; None likewise.
    """

    transposed: Rows | None
    order: Tensor | None

    def with_values(self, values: Tensor) -> Self:
        """The same positions with other values, of the shape of `values`; the transposed copy follows."""
        result = super().with_values(values)
        if result.transposed is None or result.order is None:
            return result
        moved = result.values.reshape(-1).index_select(0, result.order)
        return dataclasses.replace(result, transposed=dataclasses.replace(result.transposed, values=moved))


@dataclass(frozen=True)
class Csr(Gathering):
    """Compressed sparse rows: any mask.

    Attributes:
        pointers: int32 `[rows + 1]`: first entry of each row.
        columns: int16 (without sign) or int32 `[entries]`, ascending inside a row.
        longest: Entries of the longest row.
    """

    pointers: Tensor
    columns: Tensor
    longest: int

    @property
    def forward_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the forward product reads."""
        return self.pointers, self.columns, self.values


@dataclass(frozen=True)
class Condensed(Gathering):
    """Constant fan-in: `values` is `[rows, fan_in]`, without pointers.

    Attributes:
        columns: int16 (without sign) or int32 `[rows, fan_in]`, ascending inside a row.
    """

    columns: Tensor

    @property
    def forward_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the forward product reads."""
        return self.columns, self.values


@dataclass(frozen=True)
class Blocks(Packed):
    """Blocks of R outputs × C inputs: `values` is `[blocks, R, C]`, zero beyond the weight's edge.

    Attributes:
        pointers: int32 `[⌈rows / R⌉ + 1]`: first block of each row of blocks.
        columns: int32 `[blocks]`: column of blocks, ascending inside a row.
        rows: int32 `[blocks]`: row of blocks that each block is in.
        transposed_pointers: int32 `[⌈columns / C⌉ + 1]`: first place in `order` of each column of blocks.
        order: int32 `[blocks]`: the blocks column by column.
        longest: Blocks of the longest row and of the longest column.
    """

    pointers: Tensor
    columns: Tensor
    rows: Tensor
    transposed_pointers: Tensor
    order: Tensor
    longest: tuple[int, int]

    @property
    def block(self) -> tuple[int, int]:
        """R and C."""
        return self.values.shape[1], self.values.shape[2]

    @property
    def layout(self) -> str:
        """`blocks-RxC`."""
        return "blocks-{}x{}".format(*self.block)

    @property
    def forward_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the forward product reads."""
        return self.pointers, self.columns, self.values

    @property
    def padded(self) -> bool:
        """Whether some values lie beyond the weight's edge."""
        return any(size % side for size, side in zip(self.shape, self.block, strict=True))


@dataclass(frozen=True)
class NM(Packed):
    """n of every m inputs: `values` is `[rows, columns / m · n]`.

    Attributes:
        m: Inputs of a group, a power of two.
        n: Stored weights of a group.
        index_bits: Bits of a place in its group: 2, 4 or 8.
        indices: uint8 `[bytes]`: the places, ascending inside a group, lowest bits first.
        semi_structured: torch's semi-structured form of the same weight, where the device has one.
    """

    m: int
    n: int
    index_bits: int
    indices: Tensor
    semi_structured: Tensor | None

    @property
    def layout(self) -> str:
        """`nm-N:M`."""
        return f"nm-{self.n}:{self.m}"

    @property
    def forward_tensors(self) -> tuple[Tensor, ...]:
        """The tensors that the forward product reads."""
        return self.indices, self.values

    def with_values(self, values: Tensor) -> Self:
        """The same positions with other values of that shape; the semi-structured form follows."""
        result = super().with_values(values)
        if result.semi_structured is None:
            return result
        return dataclasses.replace(result, semi_structured=semi_structured(result.dense(), self.n, self.m))


def semi_structured(weight: Tensor, n: int, m: int) -> Tensor | None:
    """torch's semi-structured form of a dense 2:4 weight, or None where it has none.

    It exists for 2:4, float16 and bfloat16, multiples of 64, on GPUs from compute capability 8.0 on.
    """
    if (
        (n, m) != (2, 4)
        or weight.dtype not in (torch.float16, torch.bfloat16)
        or weight.device.type != "cuda"
    ):
        return None
    if any(size % 64 for size in weight.shape) or torch.cuda.get_device_capability(weight.device) < (8, 0):
        return None
    return torch.sparse.to_sparse_semi_structured(weight)


def _moved(value: object, device: torch.device | str) -> object:
    if isinstance(value, Tensor):
        return value.to(device)
    if isinstance(value, Rows):
        moved: dict[str, Any] = {name: _moved(part, device) for name, part in vars(value).items()}
        return dataclasses.replace(value, **moved)
    return value
