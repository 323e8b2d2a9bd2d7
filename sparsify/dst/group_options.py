"""The options of a group penalty: how many groups stay, and what does not go together."""

from __future__ import annotations

from torch import nn

from sparsify.dst.groups import Groups
from sparsify.errors import UserError
from sparsify.masks import NM, Blocks, FanIn, pattern_of


def wanted(groups: Groups, keep: float | None, k: int | None) -> int:
    """How many groups stay.

    Args:
        groups: All groups.
        keep: Share that stays, or None.
        k: Number that stays, or None.

    Raises:
        UserError: Not exactly one of `keep` and `k` is given, or it is out of range.
    """
    m, sets = len(groups), len(groups.sets)
    if (keep is None) == (k is None):
        raise UserError("give either keep, the share of the groups that stays, or k, their number")
    if keep is not None and not 0.0 < keep <= 1.0:
        raise UserError(f"keep must lie in (0, 1], got {keep}")
    if k is not None and not sets <= k <= m:
        raise UserError(f"k must lie between {sets} (one group in each of so many widths) and {m}, got {k}")
    return k if k is not None else max(sets, round((keep or 0.0) * m))


def quotas(groups: Groups, k: int, share: float) -> list[int]:
    """Groups that stay at least in each set: this share of its part of k, and one; together at most k."""
    part = share * k / len(groups)
    found = [max(1, min(one.count, round(part * one.count))) for one in groups.sets]
    excess = sum(found) - k
    if share < 1.0 and excess > 0:
        return [1] * len(found)
    return found


def check_options(
    total_steps: int,
    scope: str,
    floor: float,
    strength: float | None,
    weights: str,
    tolerance: float,
    finish_at: float,
    update_every: int,
) -> None:
    """Checks what has a range.

    Raises:
        UserError: Something is outside of it.
    """
    if total_steps < 1 or update_every < 1:
        raise UserError(f"total_steps and update_every must be at least 1, got {total_steps}, {update_every}")
    if scope not in ("model", "layer"):
        raise UserError(f"scope must be model or layer, got {scope!r}")
    if not 0.0 <= floor < 1.0:
        raise UserError(f"floor must lie in [0, 1), got {floor}")
    if weights not in ("sqrt", "one"):
        raise UserError(f"weights must be sqrt or one, got {weights!r}")
    if strength is not None and not 0.0 < strength < float("inf"):
        raise UserError(f"strength must be positive and finite, got {strength}")
    if tolerance < 0 or not 0.0 < finish_at <= 1.0:
        raise UserError(f"tolerance must be at least 0 and finish_at in (0, 1], got {tolerance}, {finish_at}")


def check_pattern(model: nn.Module, groups: Groups) -> None:
    """Checks that masks keep to their pattern once groups are gone: rows may go from constant fan-in.

    Raises:
        UserError: They would not.
    """
    pattern = pattern_of(model)
    rows = all(getattr(part, "axis", 1) == 0 for part in groups.parts)
    if isinstance(pattern, NM | Blocks) or (isinstance(pattern, FanIn) and not rows):
        raise UserError(
            f"the model's masks have the pattern {pattern.name}, which would not hold any more once whole "
            f"groups ({groups.sets[0].kind}) are gone; use an unstructured or a dense model"
        )
