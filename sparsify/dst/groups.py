"""Groups of parameters that live or die together: disjoint, numbered, and in sets of which one must stay."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sparsify.dst.group_parts import Part, coverage
from sparsify.errors import Refusal, UserError


@dataclass(frozen=True)
class GroupSet:
    """Groups of one kind in one place: the filters of a width, the tiles of a weight.

    Attributes:
        id: The width group's first member, as `conv1.weight[0]`, or the weight's fqn.
        kind: `neurons`, `filters`, `channels`, `heads`, `ffn`, `weights` or `RxC`.
        first: Number of its first group; the others follow.
        count: Its groups.
    """

    id: str
    kind: str
    first: int
    count: int


class Groups:
    """All groups that a penalty acts on.

    Attributes:
        sets: The sets, which number the groups without a gap.
        parts: Where the members are.
        refusals: What was left out, and why.
        sizes: Entries of each group [m], float64; of masked parameters the active ones.

    Args:
        sets: See above.
        parts: See above.
        refusals: See above.

    Raises:
        UserError: There is no group, or two groups share an entry of a parameter.
    """

    def __init__(
        self, sets: Sequence[GroupSet], parts: Sequence[Part], refusals: Iterable[Refusal] = ()
    ) -> None:
        self.sets, self.parts, self.refusals = tuple(sets), tuple(parts), tuple(refusals)
        if not self.sets:
            reasons = "; ".join(f"{one.fqn}: {one.reason}" for one in self.refusals[:4])
            raise UserError(
                "the model has no groups of the kind asked for"
                + (f" ({reasons})" if reasons else "")
                + "; choose another kind (units, neurons, filters, channels, heads, ffn, weights, RxC)"
            )
        self._check_disjoint()
        self.sizes = self._sizes()

    def __len__(self) -> int:
        """Number of groups m."""
        return self.sets[-1].first + self.sets[-1].count

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.parts[0].param.device

    def describe(self, group: int) -> str:
        """A group in a person's words."""
        one = next(one for one in self.sets if group < one.first + one.count)
        return f"unit {group - one.first} of {one.id}"

    def norms(self) -> Tensor:
        """‖w_{s_j}‖₂ of every group [m], float64."""
        totals = self._totals()
        for part in self.parts:
            part.add_totals(_working(part.param).square(), totals)
        return totals.sqrt()

    def scale(self, factors: Tensor) -> None:
        """Multiplies every group by its factor, in place.

        Args:
            factors: One a group [m].
        """
        extended = torch.cat([factors, factors.new_ones(1)])
        with torch.no_grad():
            for part in self.parts:
                part.param.mul_(part.spread(extended).to(part.param.dtype))

    def masks(self, kept: Tensor) -> dict[int, Tensor]:
        """What stays of every parameter, by the parameter's id: what is in no group, and the kept groups.

        Args:
            kept: Bool, one entry a group.
        """
        extended = torch.cat([kept, kept.new_ones(1)])
        found: dict[int, Tensor] = {}
        for part in self.parts:
            mask = part.spread(extended).expand(part.param.shape)
            found[id(part.param)] = found[id(part.param)] & mask if id(part.param) in found else mask.clone()
        return found

    def check_trained(self, trained: set[int]) -> None:
        """Checks that every member is trained.

        Args:
            trained: Ids of the parameters that an optimizer updates.

        Raises:
            UserError: A parameter is not among them.
        """
        fixed = sorted({part.fqn for part in self.parts if id(part.param) not in trained})
        if fixed:
            raise UserError(
                f"groups have members that this optimizer does not update: {', '.join(fixed[:4])}"
                f"{', …' if len(fixed) > 4 else ''}; give it all parameters of the groups, or leave those "
                "layers out with keep_dense"
            )

    def _totals(self) -> Tensor:
        return torch.zeros(len(self), dtype=torch.float64, device=self.device)

    def _sizes(self) -> Tensor:
        totals = self._totals()
        for part in self.parts:
            mask = part.owner._buffers.get(f"{part.name}_mask")
            present = torch.ones_like(part.param.detach()) if mask is None else mask
            part.add_totals(present.to(torch.float32), totals)
        return totals

    def _check_disjoint(self) -> None:
        taken: dict[int, Tensor] = {}
        for part in self.parts:
            mask = coverage(part, len(self))
            before = taken.get(id(part.param))
            if before is not None and bool((before & mask).any()):
                raise UserError(
                    f"groups overlap in {part.fqn}: entries belong to a group along one dimension and to "
                    "another along a second; penalise one side only (filters or channels, not both)"
                )
            taken[id(part.param)] = mask if before is None else before | mask


def _working(tensor: Tensor) -> Tensor:
    """The values in a type whose squares do not overflow: half precision would."""
    detached = tensor.detach()
    return detached.float() if detached.dtype.itemsize < 4 else detached
