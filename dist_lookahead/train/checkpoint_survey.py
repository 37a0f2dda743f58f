"""Which checkpoints agents have, as they tell each other before they go on from one."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from dist_lookahead.mail import who_says_what


@dataclass(frozen=True, slots=True)
class Survey:
    """Steps of which an agent has a whole checkpoint, and of which it has a damaged one only, in ascending order."""

    whole: list[int]
    damaged: list[int]


def read_survey(text: str) -> Survey:
    """Read what another agent has sent as JSON.

    Raises:
        ValueError: for anything else than two lists of steps.

    Example:
        >>> read_survey('{"whole": [10, 20], "damaged": []}')
        Survey(whole=[10, 20], damaged=[])
    """
    try:
        plain = json.loads(text)
        survey = Survey(**plain)
        steps = [*survey.whole, *survey.damaged]
    except (json.JSONDecodeError, TypeError, RecursionError) as error:
        raise ValueError(f"an agent tells of its checkpoints in a way that is not understood: {text[:80]!r}") from error
    if not all(type(step) is int and step >= 0 for step in steps):
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
