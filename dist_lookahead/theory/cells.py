"""Levels over parts of the parameters are several stacks: one for each cell, where the same levels act."""

from collections.abc import Sequence
from dataclasses import replace

from dist_lookahead.fragments import WHOLE, Named, possible_cells
from dist_lookahead.level import Level, check_levels


def cell_stacks(levels: Sequence[Level]) -> list[tuple[Level, ...]]:
    """Return the stacks of levels that act on some parameter, each different one once.

    Fast steps are counted anew from a sync of the outermost level of the stack, so that no phase is left.

    Args:
        levels: innermost first.

    Raises:
        ValueError: for patterns of names, which mean nothing without a model.

    Example:
        >>> from dist_lookahead import streaming_diloco
        >>> [[level.when for level in stack] for stack in cell_stacks(streaming_diloco(tau=100, parts=4))]
        [[Every(tau=100)]]
    """
    levels = check_levels(levels)
    named = [level.params for level in levels if isinstance(level.params, Named)]
    if named:
        raise ValueError(
            f"params={named[0]}: which levels act together depends on the names of a model's parameters; "
            "give the levels of one parameter, without params"
        )
    stacks: list[tuple[Level, ...]] = []
    for cell in possible_cells([level.params for level in levels]):
        stack = tuple(_alone(levels[index]) for index in cell)
        if stack not in stacks:  # compared and not hashed: a schedule of the user's may have no hash
            stacks.append(stack)
    return stacks


def require_one_cell(levels: Sequence[Level]) -> None:
    """Refuse levels that are several stacks, or whose steps are counted from elsewhere than from a sync.

    Raises:
        ValueError: for those.
    """
    for index, level in enumerate(levels):
        if level.params != WHOLE or level.when.phase:
            what = f"params={level.params}" if level.params != WHOLE else f"phase={level.when.phase}"
            raise ValueError(
                f"levels[{index}].{what}: theory looks at one stack that acts on all parameters, with steps counted "
                "from a sync of all; theory.cell_stacks(levels) gives the stack of each part of the parameters"
            )


def _alone(level: Level) -> Level:
    # By the rule of phases all levels of a cell that fires as a whole are due then.
    return replace(level, when=replace(level.when, phase=0), params=WHOLE)
