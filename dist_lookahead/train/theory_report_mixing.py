"""Syncs as matrices: P of each kind of sync, its spectrum, and the sequence y = X a that syncs leave where it is."""

import re
from collections import Counter
from collections.abc import Iterator, Sequence

from torch import Tensor

from dist_lookahead import theory
from dist_lookahead.averaging.gossip import OnGraph
from dist_lookahead.level import Level
from dist_lookahead.mesh import Mesh, as_mesh
from dist_lookahead.train.theory_report_text import coefficient, names, number, paragraph, table

SHOWN = 4  # columns that are alike, before the middle ones are left out
MOST = 64  # agents in a matrix
ROUNDING = 1e-3  # of eigenvalues, in matrices that cannot be diagonalised


def mixing_lines(levels: Sequence[Level], agents: int | Mesh) -> Iterator[str]:
    """Yield P and its spectrum for each kind of sync.

    Args:
        levels: innermost first, without schedules.
        agents: n, or a mesh of agents.
    """
    if isinstance(agents, int) and agents > MOST:
        yield from paragraph(f"Matrices are those of {MOST} agents: for {agents} they are alike, with 1/n in place.")
        agents = MOST
    if any(level.mix.period(as_mesh(agents)) > 1 for level in levels):
        yield from paragraph("A graph changes from sync to sync: its first turns are shown.")
    for fired, step in _kinds(levels).items():
        P = theory.mixing_matrix(levels, agents, step)
        yield from paragraph(f"P where {names(fired)} fire{'s' * (len(fired) == 1)}, new X = (X - gamma G) P:")
        yield from table(_cells(P, theory.columns(levels, agents)))
        yield from paragraph(f"spectrum: {_spectrum(levels, agents, step)}")


def average_lines(levels: Sequence[Level], agents: int | Mesh) -> Iterator[str]:
    """Yield the weights a with P a = a, y = X a, and how fast y moves, or why there is no such y."""
    agents = agents if isinstance(agents, Mesh) else min(agents, MOST)
    try:
        a = theory.fixed_vector(levels, agents)
    except ValueError as error:
        yield from paragraph(f"No sequence moves like SGD: {error}.")
        return
    groups = _groups(theory.columns(levels, agents))
    each = ", ".join(f"{number(float(a[places[0]]))} for {_each(name, places)}" for name, places in groups.items())
    yield from paragraph(f"P a = a for a = {each}")
    terms = [(float(a[places].sum()), _mean(name, places)) for name, places in groups.items()]
    yield from paragraph(f"y = X a = {_sum([term for term in terms if number(term[0]) != '0'])}")
    factor = coefficient(theory.effective_lr(levels, agents))
    yield from paragraph(
        f"effective learning rate: {factor}gamma. No sync moves y, a fast step moves it by -{factor}gamma times the "
        "agents' mean gradient."
    )


def _kinds(levels: Sequence[Level]) -> dict[tuple[int, ...], int]:
    """Return which levels fire together, and after which fast step for the first time."""
    kinds: dict[tuple[int, ...], int] = {}
    for step, fired in enumerate(theory.firings(levels, levels[-1].when.after(0)), start=1):
        if fired:
            kinds.setdefault(tuple(firing.index for firing in fired), step)
    return kinds


def _groups(columns: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of the columns of the same kind: x, z0, v0, .."""
    groups: dict[str, list[int]] = {}
    for place, column in enumerate(columns):
        groups.setdefault(re.sub(r"^x\d+$|@.*$", lambda found: "x" * found[0].startswith("x"), column), []).append(
            place
        )
    return groups


def _cells(P: Tensor, columns: Sequence[str]) -> list[list[str]]:
    """Return rows for the old columns of X, columns for the new ones; dots stand for agents in the middle."""
    shown: list[int | None] = []
    for places in _groups(columns).values():
        shown += places if len(places) <= SHOWN else [places[0], None, places[-1]]
    titles = [".." if place is None else columns[place] for place in shown]
    rows = [[".." if None in (row, column) else number(float(P[row, column])) for column in shown] for row in shown]
    return [["", *titles], *([title, *cells] for title, cells in zip(titles, rows, strict=True))]


def _spectrum(levels: Sequence[Level], agents: int | Mesh, step: int) -> str:
    """Each eigenvalue with its multiplicity; of a gossip their moduli.

    Where agents are alike, P acts on what they share as for one agent, and on each of the n - 1 ways to differ as on
    the only one of two agents.
    """
    if any(isinstance(level.mix, OnGraph) for level in levels):
        moduli = theory.spectrum(theory.mixing_matrix(levels, agents, step)).abs().tolist()
        return "moduli " + _counted(Counter(f"{modulus:.3f}" for modulus in moduli))
    if isinstance(agents, Mesh):
        return _counted(Counter(_eigenvalues(levels, agents, step)))
    one, two = (Counter(_eigenvalues(levels, few, step)) for few in (1, 2))
    return _counted(one + Counter({value: (agents - 1) * count for value, count in (two - one).items()}))


def _counted(counts: Counter[str]) -> str:
    return ", ".join(f"{value} ({count} times)" if count > 1 else value for value, count in counts.items())


def _eigenvalues(levels: Sequence[Level], agents: int | Mesh, step: int) -> Iterator[str]:
    """By decreasing modulus: 1 for what stays, beta for slow momentum that is kept, 0 for what is overwritten."""
    betas = {level.move.coefficients(0)[1] for level in levels}
    known = {0.0: "0", 1.0: "1"} | {beta: f"beta = {number(beta)}" for beta in betas if beta}
    for value in theory.spectrum(theory.mixing_matrix(levels, agents, step)):
        nearest = min(known, key=lambda exact, value=complex(value): abs(exact - value))
        assert abs(nearest - complex(value)) < ROUNDING
        yield known[nearest]


def _each(name: str, places: Sequence[int]) -> str:
    return f"each {name}" if len(places) > 1 else name


def _mean(name: str, places: Sequence[int]) -> str:
    return f"mean {name}" if len(places) > 1 else name


def _sum(terms: Sequence[tuple[float, str]]) -> str:
    """Write a sum: "2.5 mean x - 1.5 z0"."""
    (first, what), *others = terms
    start = f"{coefficient(first)}{what}"
    return start + "".join(f" {'+' if value > 0 else '-'} {coefficient(abs(value))}{name}" for value, name in others)
