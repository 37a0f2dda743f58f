"""Which stacks the theory knows."""

from collections.abc import Sequence

from dist_lookahead.level import Level, check_levels
from dist_lookahead.theory.cells import require_one_cell


def modelled(levels: Sequence[Level]) -> tuple[Level, ...]:
    """Return the levels as a stack, or refuse one of which theory would say something wrong.

    Args:
        levels: innermost first.

    Raises:
        ValueError: for a stack that does not fit together, for levels over parts of the parameters, which are several
            stacks, and for averages that land later: what is under way is not in the state X.

    Example:
        >>> from dist_lookahead import slowmo
        >>> modelled(slowmo(tau=12, delay=4))
        Traceback (most recent call last):
        ...
        ValueError: levels[0].when.delay=4: theory does not model averages that land later; ask with delay=0 instead
    """
    levels = check_levels(levels)
    require_one_cell(levels)
    for index, level in enumerate(levels):
        if level.when.delay:
            raise ValueError(
                f"levels[{index}].when.delay={level.when.delay}: theory does not model averages that land later; ask "
                "with delay=0 instead"
            )
        if level.local_share:
            raise ValueError(
                f"levels[{index}].local_share={level.local_share}: theory does not model agents that keep a share of "
                "their own weights; ask with local_share=0 instead"
            )
    return levels
