"""Agents that do not fit each other are all told so, before any sum: gloo would hang, abort, or sum anything."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import StepLR

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

NAMES = ("node", "local")
GRID = Mesh((2, 2), NAMES)


def in_one_group(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=0.1)


def build(
    levels: Sequence[Level],
    width: int = 3,
    fast: Callable[[nn.Module], Optimizer] = in_one_group,
    mesh: Mesh = GRID,
    **options: Any,
) -> DistributedLookahead:
    model = nn.Linear(4, width)
    return DistributedLookahead(fast(model), levels, model=model, mesh=mesh, **options)


def build_split(axis: str | None, levels: Sequence[Level]) -> DistributedLookahead:
    """With weights that FSDP2 has split along an axis, or whole ones."""
    mesh, model = init_device_mesh("cpu", GRID.shape, mesh_dim_names=NAMES), nn.Linear(4, 4)
    if axis:
        fully_shard(model, mesh=mesh[axis])
    return DistributedLookahead(in_one_group(model), levels, model=model, mesh=mesh)


def in_two_groups(model: nn.Module) -> Optimizer:
    return SGD([{"params": [parameter]} for parameter in model.parameters()], lr=0.1)


def of_another_version() -> DistributedLookahead:
    known = agreement_module.metadata.version
    agreement_module.metadata.version = lambda name: "0.0.7"
    try:
        return build(local_sgd(2))
    finally:
        agreement_module.metadata.version = known


Case = tuple[Callable[[], DistributedLookahead], str]
CASES: dict[str, Case] = {
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
    "value that is refused": (
        lambda: build(hierarchical_local_sgd((2, 4)), check_every=-1),
        "the error 'check_every=-1 must be at least 0'",
    ),
    "mesh of another size": (
        lambda: build(hierarchical_local_sgd((2, 4)), mesh=Mesh((2, 3), NAMES)),
        "has 6 agents, and there are 4 processes",
    ),
    "other fast optimizer": (
        lambda: build(hierarchical_local_sgd((2, 4)), fast=lambda model: Adam(model.parameters())),
        "fast optimizer Adam(",
    ),
    "other parameter groups": (
        lambda: build(hierarchical_local_sgd((2, 4)), fast=in_two_groups),
        "of 2 groups, parameters whole on agents [3]",
    ),
}
SPLIT_CASES: dict[str, Case] = {
    "weights that are not split": (lambda: build_split(None, local_sgd(2)), "parameters whole on agents [3]"),
    "split along another axis": (lambda: build_split("node", local_sgd(2)), "parameters split along 'node' on"),
    "split, other levels": (lambda: build_split("local", local_sgd(4)), "levels[0] = "),
    "split, levels that are refused": (
        lambda: build_split("local", [Level(Every(2), Exact("local"), Copy())]),
        "averages along the axis over which the weights are split",
    ),
}


def one_of_four_differs() -> dict[str, tuple[str, str]]:
    whole = said_of(CASES, lambda: build(hierarchical_local_sgd((2, 4))))
    return whole | said_of(SPLIT_CASES, lambda: build_split("local", local_sgd(2)))


def said_of(cases: dict[str, Case], usual: Callable[[], DistributedLookahead]) -> dict[str, tuple[str, str]]:
    """The last agent differs, each time in another way, and all go on in the same process group."""
    said = {}
    for name, (otherwise, _) in cases.items():
        own = otherwise if ProcessGroupCommunicator().rank == 3 else usual
        try:
            own()
            said[name] = ("nothing", "")
        except ValueError as error:
            said[name] = (type(error).__name__, str(error))
    usual()  # the group still works
    return said


def test_every_agent_is_told_what_differs_first_and_on_which_agents() -> None:
    told = run_processes(one_of_four_differs, 4)
    for name, (_, part) in (CASES | SPLIT_CASES).items():
        kinds, messages = zip(*(agent[name] for agent in told), strict=True)
        assert set(kinds) == {"AgentsDiffer"}, name
        assert len(set(messages)) == 1, name
        assert messages[0].startswith("agents differ: "), name
        assert part in messages[0], name
        assert "on agents [0, 1, 2]; " in messages[0], name
        assert "on agents [3]. Build the same model" in messages[0], name


def with_rates_of_their_own() -> list[float]:
    def fast(model: nn.Module) -> Optimizer:
        own = SGD(model.parameters(), lr=0.1 * (1 + ProcessGroupCommunicator().rank), momentum=0.5)
        if ProcessGroupCommunicator().rank:
            StepLR(own, step_size=2)
        return own

    return [group["lr"] for group in build(local_sgd(2), fast=fast, mesh=Mesh((2,))).param_groups]


def test_agents_may_have_learning_rates_and_schedulers_of_their_own() -> None:
    assert run_processes(with_rates_of_their_own, 2) == [[0.1], [0.2]]


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
