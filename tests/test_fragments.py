"""Levels over parts of the parameters: nothing is lost, nothing is averaged twice, and little is sent at once.

A peer that fills buckets of a fixed size skips tensors without a word when they do not fit (sizes 3 and 3 in a bucket
of 4). Here every parameter belongs to a bucket of the levels that act on it, whatever the sizes are.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import pytest
import torch
from digits_training import make_agent, make_agents, mesh_for, same, train
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import run_processes
from torch import nn

from dist_lookahead import (
    Copy,
    DistributedLookahead,
    Every,
    Exact,
    Gossip,
    Level,
    Named,
    Part,
    Pull,
    Whole,
    simulate,
    slowmo,
    streaming_diloco,
    theory,
)
from dist_lookahead.alike import agree, likeness
from dist_lookahead.comm.process_group import default_communicator
from dist_lookahead.fragments import balanced_starts, possible_cells
from dist_lookahead.level import check_levels
from dist_lookahead.mesh import Mesh


class Net(nn.Module):
    """Parameters of given sizes, some of another dtype."""

    def __init__(self, sizes: Sequence[int], half: frozenset[int], value: float) -> None:
        super().__init__()
        for index, size in enumerate(sizes):
            dtype = torch.bfloat16 if index in half else torch.float32
            self.register_parameter(f"p{index}", nn.Parameter(torch.full((size,), value, dtype=dtype)))


def agents_over(
    sizes: Sequence[int], levels: Sequence[Level], agents: int = 2, half: frozenset[int] = frozenset()
) -> list[tuple[Net, DistributedLookahead]]:
    crowd = []
    for end in simulate(mesh_for(levels, agents)):
        net = Net(sizes, half, 0.0)
        optimizer = DistributedLookahead(torch.optim.SGD(net.parameters(), lr=1.0), levels, model=net, communicator=end)
        crowd.append((net, optimizer))
    return crowd


def drift(crowd: Sequence[tuple[Net, DistributedLookahead]]) -> None:
    """A fast step that moves agent i by i + 1: agents differ wherever they have not just averaged."""
    for rank, (net, optimizer) in enumerate(crowd):
        for parameter in net.parameters():
            parameter.grad = torch.full_like(parameter, -(rank + 1.0))
        optimizer.step()


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_every_parameter_is_averaged_exactly_once_in_each_period(data: st.DataObject) -> None:
    sizes = data.draw(st.lists(st.integers(0, 9), min_size=2, max_size=9), label="sizes")
    parts = data.draw(st.integers(2, len(sizes)), label="parts")
    tau = data.draw(st.integers(parts, parts + 4), label="tau")
    half = frozenset(data.draw(st.sets(st.integers(0, len(sizes) - 1)), label="half"))
    strided = data.draw(st.booleans(), label="strided")
    levels = [
        Level(level.when, Exact(), Copy(), params=level.params)
        for level in streaming_diloco(tau, parts, strided=strided)
    ]
    crowd = agents_over(sizes, levels, half=half)
    full = [name for name, p in crowd[0][0].named_parameters() if p.numel()]
    averaged: Counter[str] = Counter()
    for _ in range(2 * tau):
        drift(crowd)
        one, other = (dict(net.named_parameters()) for net, _ in crowd)
        averaged.update(name for name in full if torch.equal(one[name], other[name]))
    assert averaged == Counter(dict.fromkeys(full, 2))


def test_sizes_that_do_not_fit_a_bucket_are_averaged_all_the_same() -> None:
    levels = [Level(Every(4, phase=2 * part), Exact(), Copy(), params=Part(part, 2)) for part in range(2)]
    crowd = agents_over([3, 3], levels)
    for _ in range(2):
        drift(crowd)
    assert torch.equal(crowd[0][0].get_parameter("p1"), crowd[1][0].get_parameter("p1"))
    assert not torch.equal(crowd[0][0].get_parameter("p0"), crowd[1][0].get_parameter("p0"))


@pytest.mark.parametrize("parts", [2, 4, 8])
def test_what_is_sent_at_once_falls_with_the_number_of_parts(parts: int) -> None:
    """Breaks if a sync sends weights of other parts; the rest is a table of a few numbers."""
    crowd = agents_over([1000] * 8, streaming_diloco(8, parts))
    end = crowd[0][1].stack.communicator
    for _ in range(8):
        drift(crowd)  # the first syncs compare checksums as well
    most, before = 0, end.bytes_sent
    for _ in range(8):
        drift(crowd)
        most, before = max(most, end.bytes_sent - before), end.bytes_sent
    assert 4 * 8000 // parts <= most <= 4 * 8000 // parts + 4 * 16


@given(st.lists(st.integers(0, 20), min_size=1, max_size=9), st.data())
def test_parts_are_as_even_as_whole_parameters_allow(sizes: list[int], data: st.DataObject) -> None:
    parts = data.draw(st.integers(1, len(sizes)))

    def heaviest(starts: Sequence[int]) -> int:
        return max(sum(sizes[low:high]) for low, high in pairwise([*starts, len(sizes)]))

    def best(first: int, left: int) -> int:
        if left == 1:
            return sum(sizes[first:])
        cuts = range(first + 1, len(sizes) - left + 2)
        return min(max(sum(sizes[first:cut]), best(cut, left - 1)) for cut in cuts)

    starts = balanced_starts(sizes, parts)
    assert len(starts) == parts
    assert sorted(set(starts)) == starts
    assert heaviest(starts) == best(0, parts)


def test_slow_weights_are_those_of_each_parameters_outermost_level() -> None:
    levels = [Level(Every(4, phase=2 * part), Exact(), Pull(0.5), params=Part(part, 2)) for part in range(2)]
    (net, optimizer), _ = crowd = agents_over([3, 3], levels)
    for _ in range(5):
        drift(crowd)
    # Agents move by 1 and 2. p1 fires after steps 2: z = 1.5; p0 after step 4: z = 3.
    with optimizer.slow_weights():
        assert [p.tolist() for p in net.parameters()] == [[3.0] * 3, [1.5] * 3]
    assert [p.tolist() for p in net.parameters()] == [[4.0] * 3, [4.5] * 3]


def test_a_part_without_slow_weights_of_its_own_has_none_to_evaluate_in_mid_round() -> None:
    levels = [
        Level(Every(2), Exact(), Pull(0.5), params=Part(0, 2)),
        Level(Every(3), Exact(), Copy(), params=Part(1, 2)),
    ]
    (_, optimizer), _ = crowd = agents_over([3, 3], levels)
    drift(crowd)
    with pytest.raises(RuntimeError, match="keeps no slow weights"), optimizer.slow_weights():
        pass


def test_a_level_above_all_parts_overwrites_them() -> None:
    levels = [
        Level(Every(1), Exact(), Pull(0.5), params=Named(("p0",))),
        Level(Every(2), Exact(), Pull(0.5), params=Named(("p[12]",))),
        Level(Every(4), Exact(), Pull(0.5)),
    ]
    crowd = agents_over([2, 3, 1], levels)
    for _ in range(4):
        drift(crowd)
    stack = crowd[0][1].stack
    for bucket in stack.buckets:
        held = [bound.slow[bound.buckets.index(bucket)] for bound in stack.bound if bucket in bound.buckets]
        assert len(held) == 2
        assert torch.equal(*(slow[: bucket.weights_end] for slow in held))


def test_a_reset_leaves_the_buffers_of_other_parts() -> None:
    levels = [
        Level(Every(1), Exact(), Copy(), "reset", Named(("p0",))),
        Level(Every(2), Exact(), Copy(), params=Named(("p1",))),
    ]
    (net, optimizer), *_ = crowd = agents_over([2, 3], levels)
    for group in (group for _, own in crowd for group in own.param_groups):
        group["momentum"] = 0.9
    drift(crowd)
    assert net.get_parameter("p0") not in optimizer.state
    assert "momentum_buffer" in optimizer.state[net.get_parameter("p1")]


def test_a_parameter_that_joins_is_averaged_by_the_levels_that_cover_its_name() -> None:
    levels = [
        Level(Every(2), Exact(), Copy(), params=Named(("p[02]",))),
        Level(Every(3), Exact(), Copy(), params=Named(("p1",))),
    ]
    crowd = agents_over([2, 3], levels)
    for net, optimizer in crowd:
        net.register_parameter("p2", nn.Parameter(torch.zeros(4)))
        optimizer.add_param_group({"params": [net.get_parameter("p2")]})
    for step in range(1, 9):
        drift(crowd)
        one, other = (net.get_parameter("p2") for net, _ in crowd)
        assert torch.equal(one, other) == (step % 2 == 0)


def test_a_single_parameter_that_joins_parts_is_in_one_of_them() -> None:
    crowd = agents_over([2, 3], [Level(Every(2), Exact(), Copy(), params=Part(part, 2)) for part in range(2)])
    for net, optimizer in crowd:
        net.register_parameter("p2", nn.Parameter(torch.zeros(4)))
        optimizer.add_param_group({"params": [net.get_parameter("p2")]})
    for _ in range(4):
        drift(crowd)
    assert torch.equal(*(net.get_parameter("p2") for net, _ in crowd))
    assert sum("p2" in names for names in crowd[0][1].stack.inventory.names) == 1


# --- processes


STEPS = 8
LEVELS = streaming_diloco(4, 2, 0.7, 0.6)


def as_process() -> dict[str, Any]:
    end = default_communicator()
    agent = make_agent(end.rank, end, LEVELS)
    train([agent], range(STEPS))
    agent.optimizer.sync()
    return agent.state()


@pytest.mark.timeout(60)
def test_processes_give_the_numbers_of_simulated_agents() -> None:
    simulated = make_agents(2, LEVELS)
    train(simulated, range(STEPS))
    for agent in simulated:
        agent.optimizer.sync()
    for one, other in zip(run_processes(as_process, 2), simulated, strict=True):
        assert same(one, other.state())


# --- what does not fit


REFUSED = [
    (
        [Level(Every(2), Exact(), Copy(), params=Named(("p0",)))],
        "parameter 'p1' is in no level's params, and would drift apart",
    ),
    (
        [Level(Every(2), Exact(), Copy(), params=Named(("q*",)))],
        r"levels\[0\].params: 'q\*' matches none of the 2 parameters, 'p0', 'p1': use their names",
    ),
    (
        [Level(Every(2), Exact(), Copy(), params=Part(part, 3)) for part in range(3)],
        "3 parts need as many parameters, and there are 2, 'p0', 'p1': use fewer parts",
    ),
    (
        [Level(Every(3), Exact(), Copy(), params=Named(("p0",))), Level(Every(4), Exact(), Pull(0.5))],
        r"levels\[1\].tau=4 must be a multiple of levels\[0\].tau=3: use 6",
    ),
    (
        [
            Level(Every(3), Exact(), Copy(), params=Named(("p0", "p1"))),
            Level(Every(4), Exact(), Pull(0.5), params=Named(("p1",))),
        ],
        r"levels\[1\].tau=4 must be a multiple of levels\[0\].tau=3: use 6",
    ),
    (
        [Level(Every(2), Exact(), Copy()), Level(Every(4, phase=1), Exact(), Pull(0.5))],
        r"levels\[1\].phase=1 must be levels\[0\].phase=0 plus a multiple of levels\[0\].tau=2",
    ),
]


@pytest.mark.parametrize(("levels", "sentence"), REFUSED, ids=[sentence[:30] for _, sentence in REFUSED])
def test_levels_that_do_not_fit_the_parameters_are_refused(levels: list[Level], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        agents_over([3, 3], levels)


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: Part(2, 2), "Part.index=2 must be that of one of 2 parts: 0 to 1"),
        (lambda: Part(0, 1), "Part.of=1 must be at least 2 parts"),
        (lambda: Named(()), "must have at least one pattern"),
        (lambda: Every(4, phase=4), "Every.phase=4 must be a whole number of fast steps, 0 <= phase < tau=4"),
        (lambda: streaming_diloco(3, 4), "tau=3 must be at least parts=4"),
    ],
)
def test_descriptions_out_of_range_are_refused(make: Callable[[], object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        make()


def test_levels_without_a_common_parameter_need_no_common_multiple() -> None:
    levels = [Level(Every(3 + part), Exact(), Copy(), params=Part(part, 2)) for part in range(2)]
    assert check_levels(levels) == tuple(levels)


# --- who agrees


def test_agents_are_alike_after_a_level_where_they_are_in_all_its_cells() -> None:
    mesh = Mesh((2, 2), ("node", "local"))
    near = Level(Every(1), Exact("local"), Copy(), params=Part(0, 2))
    over_all = Level(Every(2), Exact("node"), Copy())
    assert [own.after for own in likeness([near, over_all], mesh)] == [("local",), ("node",)]
    both = [near, dataclasses.replace(near, params=Part(1, 2)), over_all]
    assert likeness(both, mesh)[2].after == ("local", "node")


def test_all_agree_only_where_all_parts_do() -> None:
    exact, gossip = (Level(Every(2), mix, Copy(), params=Part(i, 2)) for i, mix in enumerate((Exact(), Gossip())))
    assert agree([exact, dataclasses.replace(exact, params=Part(1, 2))], agents=4)
    assert not agree([exact, gossip], agents=4)


def test_cells_of_patterns_are_all_that_there_can_be() -> None:
    assert set(possible_cells([Named(("a",)), Named(("b",)), Whole()])) == {(0, 1, 2), (0, 2), (1, 2), (2,)}


# --- theory


def test_theory_looks_at_the_stack_of_each_part() -> None:
    levels = streaming_diloco(8, 2)
    with pytest.raises(ValueError, match=r"theory.cell_stacks\(levels\) gives the stack of each part"):
        theory.mixing_matrix(levels, 2, 8)
    (stack,) = theory.cell_stacks(levels)
    assert stack[0].when == Every(8)
    assert theory.effective_lr(stack, 2) == pytest.approx(0.4 / (1 - 0.9))


def test_theory_refuses_patterns_of_names() -> None:
    with pytest.raises(ValueError, match="depends on the names of a model's parameters"):
        theory.cell_stacks([Level(Every(2), Exact(), Copy(), params=Named(("a",)))])


def test_parts_under_a_slow_momentum_that_is_unstable_are_warned_of() -> None:
    parts = [dataclasses.replace(slowmo(6, beta=0.8)[0], params=Part(part, 2)) for part in range(2)]
    net = Net([3, 3], frozenset(), 0.0)
    inner = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9)
    with pytest.warns(UserWarning, match="is unstable on quadratics"):
        DistributedLookahead(inner, parts, communicator=simulate(2)[0])
