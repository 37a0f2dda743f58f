"""Which checkpoints agents have, as they tell each other before they go on from one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from dist_lookahead.mail import who_says_what


@dataclass(frozen=True, slots=True)
class Survey:
    """What an agent has to go on from.

    Attributes:
        whole: steps of which it has a whole checkpoint, in ascending order.
        damaged: of which it has a damaged one only.
        seen: (step, number of agents) of later whole ones of other agents, where the number of agents may change.
    """

    whole: list[int]
    damaged: list[int]
    seen: list[list[int]] = field(default_factory=list)


def read_survey(text: str) -> Survey:
    """Read what another agent has sent as JSON.

    Raises:
        ValueError: for anything else than lists of steps.

    Example:
        >>> read_survey('{"whole": [10, 20], "damaged": []}')
        Survey(whole=[10, 20], damaged=[], seen=[])
    """
    try:
        plain = json.loads(text)
        survey = Survey(**plain)
        numbers = [agents for _, agents in survey.seen]
        steps = [*survey.whole, *survey.damaged, *(step for step, _ in survey.seen)]
    except (ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"an agent tells of its checkpoints in a way that is not understood: {text[:80]!r}") from error
    if not all(type(step) is int and step >= 0 for step in steps) or not all(type(n) is int and n > 0 for n in numbers):
        raise ValueError(f"an agent tells of checkpoints of steps that cannot be: {text[:80]!r}")
    return survey


def passed_over(surveys: Sequence[Survey], step: int) -> str:
    """Say which checkpoints after the step that all agents have are not used, and because of whom; "" for none.

    Example:
        >>> passed_over([Survey([10, 20], []), Survey([10], [20])], step=10)
        'whole: [20] on agents [0]; none on agents [1]; damaged: [20] on agents [1]'
    """
    later = [[found for found in survey.whole if found > step] for survey in surveys]
    damaged = [[found for found in survey.damaged if found > step] for survey in surveys]
    if not any([*later, *damaged]):
        return ""
    bad = [agent for agent, steps in enumerate(damaged) if steps]
    found = f"whole: {who_says_what([str(steps or 'none') for steps in later])}"
    return found + (f"; damaged: {who_says_what([str(damaged[agent]) for agent in bad], bad)}" if bad else "")
