"""Agents that do not fit each other are all told so, before any sum: gloo would hang, abort, or sum anything."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import SGD

from dist_lookahead import (
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Level,
    Mesh,
    hierarchical_local_sgd,
    local_sgd,
)
from dist_lookahead import agreement as agreement_module
from dist_lookahead.agreement import AgentsDiffer, exchange
from dist_lookahead.comm.communicator import Pending
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from tests.processes import run_processes

pytestmark = pytest.mark.timeout(120)

GRID = Mesh((2, 2), ("node", "local"))


def build(levels: Sequence[Level], width: int = 3, **options: Any) -> DistributedLookahead:
    model = nn.Linear(4, width)
    return DistributedLookahead(SGD(model.parameters(), lr=0.1), levels, model=model, mesh=GRID, **options)


def of_another_version() -> DistributedLookahead:
    known = agreement_module.metadata.version
    agreement_module.metadata.version = lambda name: "0.0.7"
    try:
        return build(local_sgd(2))
    finally:
        agreement_module.metadata.version = known


CASES: dict[str, tuple[Callable[[], DistributedLookahead], str]] = {
    # The others average along axes that this one never opens: groups must not be made before levels are compared.
    "one level too few": (lambda: build(local_sgd(2)), "levels[0] = "),
    "wider model": (lambda: build(hierarchical_local_sgd((2, 4)), width=4), "parameter weight has shape (3, 4)"),
    "other version": (of_another_version, "dist-lookahead 0.0.7"),
    "levels that are refused": (
        lambda: build([Level(Every(3), Exact(), Copy()), Level(Every(4), Exact(), Copy())]),
        "the error 'levels[1].tau=4 must be a multiple of levels[0].tau=3",
    ),
    "option that is refused": (
        lambda: build(hierarchical_local_sgd((2, 4)), data_parallel="rack"),
        "the error ",
    ),
}


def one_of_four_differs() -> dict[str, tuple[str, str]]:
    """The last agent differs, each time in another way, and all go on in the same process group."""
    said = {}
    for name, (otherwise, _) in CASES.items():
        own = otherwise if ProcessGroupCommunicator().rank == 3 else lambda: build(hierarchical_local_sgd((2, 4)))
        try:
            own()
            said[name] = ("nothing", "")
        except ValueError as error:
            said[name] = (type(error).__name__, str(error))
    build(hierarchical_local_sgd((2, 4)))  # the group still works
    return said


def test_every_agent_is_told_what_differs_first_and_on_which_agents() -> None:
    told = run_processes(one_of_four_differs, 4)
    for name, (_, part) in CASES.items():
        kinds, messages = zip(*(agent[name] for agent in told), strict=True)
        assert set(kinds) == {"AgentsDiffer"}, name
        assert len(set(messages)) == 1, name
        assert messages[0].startswith("agents differ: "), name
        assert part in messages[0], name
        assert "on agents [0, 1, 2]; " in messages[0], name
        assert "on agents [3]. Build the same model" in messages[0], name


def claims_too_much() -> str:
    end = ProcessGroupCommunicator()
    device = torch.device("cpu")

    def liar() -> Pending:
        yield end.all_gather(torch.zeros(2, dtype=torch.int64), torch.tensor([2**40]))

    def honest() -> Pending:
        yield from exchange(end, "text", device)

    try:
        end.run(liar() if end.rank else honest())
    except AgentsDiffer as error:
        return str(error)
    return "went on"


def test_room_is_never_made_for_whatever_another_agent_says() -> None:
    """A terabyte, were it believed."""
    first, _ = run_processes(claims_too_much, 2)
    assert first.startswith("agents want to send texts of 4 on agents [0]; 1099511627776 on agents [1] bytes, at most")
