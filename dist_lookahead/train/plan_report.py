"""A plan for a person: what it is made from, the candidates side by side, and which to take by what rule."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from dist_lookahead.mesh import WORLD
from dist_lookahead.planner.forecast import DAY
from dist_lookahead.planner.link import Transfer
from dist_lookahead.tasks.task import Task
from dist_lookahead.train.config import Config
from dist_lookahead.train.plan import Candidate, Plan, Target, make_plan
from dist_lookahead.train.plan_facts import Facts
from dist_lookahead.train.plan_price import RATE
from dist_lookahead.train.summary import size

COLUMNS = ("levels", "tau", "step", "waiting", "in syncs", "sent a day", "copies", "half-life", "drift", "grows from")
LEGEND = (
    "step: milliseconds of wall time for each fast step. waiting: share of it in which an agent is blocked by "
    "communication. in syncs: share in the arithmetic of syncs. sent a day: by each agent. copies: of the weights, "
    "kept by levels. Theory's price of rare syncs, of SGD on smooth losses: half-life of the error in fast steps where "
    f"lr x curvature is {RATE:g}; drift, the coefficient of lr^2 L^2 sigma^2 in the convergence bound, where there is "
    "one; lr x curvature from which on the error grows. It knows nothing of codes, of later landings, or of your loss."
)


def show_plan(config: Config, task: Task, facts: Facts, target: Target, out: Path | None) -> None:
    """Make a plan, print it, and write the run file with the recommended levels.

    Args:
        config: the run.
        task: what is trained.
        facts: of the agents and their links.
        target: what is looked for.
        out: file to write; None for none.
    """
    console = Console()
    console.print(*headline(config, facts), sep="\n", highlight=False, markup=False)
    with Console(stderr=True).status("rehearsing") as status:
        plan = make_plan(config, task, facts, target, lambda what: status.update(f"rehearsing {what}"))
    console.print(plan_table(plan, facts))
    console.print(*verdict_lines(plan, target), sep="\n", highlight=False, markup=False)
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        out.write_text(plan.chosen.config.to_yaml(), encoding="utf-8")
        console.print(f"Written to {out}", highlight=False, markup=False)


def percent(text: str) -> float:
    """Read "5%" or "5" as a share.

    Example:
        >>> percent("5%"), percent("12.5")
        (0.05, 0.125)
    """
    return float(text.removesuffix("%")) / 100


def headline(config: Config, facts: Facts) -> Iterator[str]:
    """Yield what the plan is made from."""
    agents = " x ".join(
        f"{count} along {name!r}" for name, count in zip(facts.mesh.names, facts.mesh.shape, strict=True)
    )
    yield f"{config.run.name} on {facts.mesh.size} agents, {agents}"
    yield f"a fast step takes {1000 * facts.step_seconds:.3g} ms, measured here on {facts.device.type}"
    said = "measured" if facts.measured else "as given"
    links = "; ".join(f"{axis} {link}" for axis, link in facts.links.items())
    yield f"links of an agent, {said}: {links}"


def plan_table(plan: Plan, facts: Facts) -> Table:
    """Return the candidates: of the file's own levels each tau, of the others the last one that was looked at."""
    table = Table(*COLUMNS, caption=LEGEND, caption_justify="left")
    for column in table.columns[1:]:
        column.justify = "right"
    for one in shown(plan):
        table.add_row(*_cells(one), style="bold" if one is plan.chosen else None)
    table.add_row(*_ddp(plan.candidates[0], facts), style="dim")
    return table


def shown(plan: Plan) -> list[Candidate]:
    """Return the candidates of the table."""
    last = {one.variant.name: one for one in (*plan.candidates, plan.chosen)}
    own = [one for one in plan.candidates if not one.variant.changes]
    return [*sorted(own, key=lambda one: one.tau), *(one for one in last.values() if one.variant.changes)]


def verdict_lines(plan: Plan, target: Target) -> Iterator[str]:
    """Yield the rule, and what it chooses."""
    one, share = plan.chosen, f"{100 * target.exposed:g} %"
    yield (
        f"Rule: the file's levels where they wait for at most {share} of the time; else the smallest tau that does, "
        "and of equal ones the fewest other changes."
    )
    says = f"{one.variant.name}, tau {one.tau}: {1000 * one.forecast.seconds:.3g} ms a step"
    says += f", {one.forecast.exposed:.1%} of it waiting"
    if one.forecast.exposed > target.exposed:
        yield f"No stack up to tau {target.longest} comes to {share}. The nearest to it: {says}"
    else:
        yield f"Recommended: {says}"
    for reason in dict.fromkeys(plan.refused.values()):
        changes = [change for change, other in plan.refused.items() if other == reason]
        yield f"Not offered: {'; '.join(changes)}: {reason}"


def _cells(one: Candidate) -> Sequence[str]:
    told, price = one.forecast, one.price
    theory = ("-",) * 3
    if price:
        drift = "-" if price.drift is None else f"{price.drift:.3g}"
        theory = (_number(price.half_life), drift, _number(price.limit))
    return (
        one.variant.name,
        str(one.tau),
        f"{1000 * told.seconds:.3g}",
        f"{told.exposed:.1%}",
        f"{told.arithmetic_seconds / told.seconds:.1%}",
        size(told.bytes_per_day),
        f"{told.copies:.2f}",
        *theory,
    )


def _ddp(written: Candidate, facts: Facts) -> Sequence[str]:
    """Gradients averaged in each step, for scale: with nothing of it hidden behind the backward pass."""
    sent = Transfer(axis=WORLD, collective="all_reduce", nbytes=written.weights, agents=facts.mesh.size)
    waiting = facts.links[WORLD].seconds(sent)
    seconds = facts.step_seconds + waiting
    day = size(sent.sent / seconds * DAY)
    return ("DDP, at most", "", f"{1000 * seconds:.3g}", f"{waiting / seconds:.1%}", "", day, "", "", "", "")


def _number(value: float) -> str:
    return "never" if math.isinf(value) else f"{value:.3g}"
