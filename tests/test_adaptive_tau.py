"""Rounds whose length depends on the learning rate or on the loss: agreed on by the mail of the sync alone."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
import torch.distributed as dist
from descending import Agent, crowd, descend
from processes import run_processes
from torch import Tensor

from dist_lookahead import (
    QSR,
    AdaComm,
    Copy,
    Every,
    Exact,
    Gossip,
    Level,
    Mesh,
    Pull,
    dpsgd,
    local_sgd,
    lookahead,
    slowmo,
    theory,
)
from dist_lookahead.adaptive import Adaptive, Facts, Memory
from dist_lookahead.notation import from_plain, to_plain
from dist_lookahead.theory.calendar import syncs
from dist_lookahead.theory.first_round import frozen
from dist_lookahead.train.config import ConfigError
from tests.training import small_config

RATES = [0.1 * 0.9**step for step in range(40)]
ADACOMM = AdaComm(start=5, interval=5)


def run(agents: list[Agent], steps: range) -> list[int]:
    """Steps after which the agents have met."""
    met = []
    for step in steps:
        for agent in agents:
            agent.optimizer.param_groups[0]["lr"] = RATES[step]
            agent.optimizer.report(loss=(agent.weight.detach() - agent.target).square().sum())
            agent.step()
        if agents[0].optimizer.stack.bound[-1].last == step + 1:
            met.append(step + 1)
    return met


# --- what the rules say


@pytest.mark.parametrize(
    ("lr", "tau"), [(1.0, 2), (0.1, 2), (0.05, 4), (0.01, 100), (1e-9, 500), (1e-320, 500), (0.0, 500)]
)
def test_qsr_is_quadratic_between_its_ends(lr: float, tau: int) -> None:
    """Breaks where the square of a tiny or zero rate's ratio overflows."""
    assert QSR(2, 0.1, longest=500).next_round(Facts(0, lr=lr), ())[0] == tau


@dataclass(frozen=True)
class Doubling:
    """A rule of a user's: each round twice as long as the one before."""

    @property
    def hears(self) -> Literal["lr", "loss"]:
        return "lr"

    @property
    def first(self) -> int:
        return 1

    def next_round(self, facts: Facts, memory: Memory) -> tuple[int, Memory]:
        tau = 2 * int(memory[0]) if memory else 1
        return tau, (tau,)


def test_a_rule_of_ones_own_is_a_frozen_dataclass() -> None:
    assert isinstance(Doubling(), Adaptive)
    assert run(crowd(local_sgd(tau=Doubling()), 2), range(16)) == [1, 3, 7, 15]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: QSR(0, 0.1), "QSR.base=0 must be a whole number"),
        (lambda: QSR(4, 0.1, longest=3), "QSR.longest=3 must be at least base=4"),
        (lambda: QSR(4, 0.0), "QSR.coefficient=0.0 must be a number above 0"),
        (lambda: AdaComm(start=2, interval=0), "AdaComm.interval=0"),
        (lambda: AdaComm(start=2, interval=1, decay=1.5), "tau never grows"),
    ],
)
def test_rules_out_of_range_are_refused(build: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


# --- agents agree


def as_process() -> dict[str, Tensor]:
    ends = {}
    for tau in (QSR(2, 0.1), ADACOMM):
        agent = Agent(dist.get_rank(), slowmo(tau, beta=0.3))
        met = run([agent], range(30))
        ends[type(tau).__name__] = torch.cat([agent.weights(), torch.tensor(met)])
    return ends


@pytest.mark.timeout(120)
def test_processes_meet_where_simulated_agents_do() -> None:
    """Each has its own loss, so that a length found from that alone would make them hang."""
    results = run_processes(as_process, 2)
    for tau in (QSR(2, 0.1), ADACOMM):
        agents = crowd(slowmo(tau, beta=0.3), 2)
        met = run(agents, range(30))
        for agent, result in zip(agents, results, strict=True):
            assert torch.equal(result[type(tau).__name__], torch.cat([agent.weights(), torch.tensor(met)]))


def test_agents_with_other_learning_rates_are_named() -> None:
    agents = crowd(local_sgd(QSR(2, 0.1)), 2)
    agents[1].optimizer.param_groups[0]["lr"] = 0.06
    message = r"different learning rates: 0.10\d* on agents \[0\]; 0.0\d* on agents \[1\], and tau depends on it"
    with pytest.raises(RuntimeError, match=message):
        descend(agents, 2)


def test_along_a_mesh_a_level_over_all_may_be_adaptive() -> None:
    levels = [Level(Every(2), Exact("local"), Copy()), Level(Every(QSR(4, 0.2)), Exact("node"), Copy())]
    met = run(crowd(levels, Mesh((2, 2), ("node", "local"))), range(30))
    assert met[0] == 4
    assert all(step % 2 == 0 for step in met), "it waits for the level below"


@pytest.mark.parametrize(
    "levels",
    [
        [Level(Every(QSR(2, 0.1)), Gossip(), Copy())],
        lookahead(ADACOMM),
        [Level(Every(2), Exact(), Copy()), Level(Every(QSR(2, 0.1)), Exact(), Pull(0.5))],
    ],
    ids=["gossip", "alone", "over a level that has averaged already"],
)
def test_without_mail_of_all_it_is_refused(levels: list[Level]) -> None:
    crowd(levels, 1)
    with pytest.raises(ValueError, match="no mail of all of them travels with mix="):
        crowd(levels, 2)


def test_a_group_alone_has_no_loss_of_all() -> None:
    with pytest.raises(ValueError, match="no mail of all"):
        crowd([Level(Every(ADACOMM), Exact("local"), Copy())], Mesh((2, 2), ("node", "local")))


# --- losses


def test_a_loss_that_nobody_tells_is_an_error_at_the_first_step() -> None:
    (agent,) = crowd(local_sgd(ADACOMM), 1)
    with pytest.raises(ValueError, match=r"call optimizer.report\(loss=...\) before step\(\), or step\(closure\)"):
        agent.step()


def test_a_closure_tells_its_loss() -> None:
    (agent,) = crowd(local_sgd(ADACOMM), 1)

    def closure() -> float:
        agent.weight.grad = agent.weight.detach() - agent.target
        return float(agent.weight.grad.square().sum())

    for _ in range(12):
        agent.optimizer.step(closure)
    assert agent.optimizer.stack.bound[0].pace.heard is not None


@pytest.mark.parametrize("loss", [float("nan"), float("inf"), 0.0, -1.0])
def test_losses_that_say_nothing_are_refused(loss: float) -> None:
    (agent,) = crowd(local_sgd(ADACOMM), 1)
    for _ in range(5):
        agent.optimizer.report(loss=loss)
        agent.step()
    with pytest.raises(ValueError, match="needs losses above 0, and their mean before fast step 5 is"):
        agent.step()


def test_losses_of_accumulated_gradients_are_averaged() -> None:
    """Breaks if two batches of a step count as one with twice the loss."""
    once, twice = (crowd(local_sgd(ADACOMM), 1)[0] for _ in range(2))
    for _ in range(5):
        once.optimizer.report(loss=torch.tensor(3.0))
        for loss in (2.0, 4.0):
            twice.optimizer.report(loss=loss)
        once.step()
        twice.step()
    assert once.optimizer.stack.bound[0].pace.heard == twice.optimizer.stack.bound[0].pace.heard == (3.0, 5)


# --- theory


def test_theory_finds_the_syncs_of_qsr_from_the_rates() -> None:
    levels = local_sgd(QSR(2, 0.1))
    met = run(crowd(levels, 2), range(40))
    assert [fired[0].step for fired in syncs(levels, 40, rates=RATES)] == met
    assert len(met) > 4
    assert theory.mixing_matrix(levels, agents=2, step=met[-1], rates=RATES).shape == (2, 2)


def test_theory_refuses_what_it_cannot_know_and_takes_the_first_round_where_one_is_enough() -> None:
    with pytest.raises(ValueError, match="depends on the learning rates of the run, and none are given"):
        list(syncs(local_sgd(QSR(2, 0.1)), 10))
    with pytest.raises(ValueError, match="depends on the losses of the run, which nobody knows beforehand"):
        list(syncs(local_sgd(ADACOMM), 10, rates=RATES))
    with pytest.raises(ValueError, match=r"tau=QSR.* changes during the run.*such as 2"):
        theory.stability_limit(local_sgd(QSR(2, 0.1)))
    assert [frozen(local_sgd(tau))[0].when.tau for tau in (QSR(2, 0.1), ADACOMM)] == [2, 5]
    assert "schedules as in the first round" in theory.verdict(slowmo(QSR(2, 0.1)), momentum=0.9).sentence


# --- run files


def test_rules_are_written_and_read_back() -> None:
    levels = slowmo(tau=QSR(4, 0.02)) + local_sgd(tau=ADACOMM)
    assert to_plain(levels[0].when) == {"every": {"tau": {"qsr": {"base": 4, "coefficient": 0.02}}}}
    assert to_plain(ADACOMM) == {"ada_comm": {"start": 5, "interval": 5}}
    assert list(from_plain(to_plain(levels))) == levels


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        (
            {"agents": 2, "levels": {"recipe": "lookahead", "tau": {"qsr": {"base": 2, "coefficient": 0.05}}}},
            "no effect",
        ),
        (
            {
                "agents": 2,
                "levels": [
                    {
                        "when": {"every": {"tau": {"qsr": {"base": 2, "coefficient": 0.1}}}},
                        "mix": "gossip",
                        "move": "copy",
                    }
                ],
                "evaluation": {"every": 6, "unit": "steps", "weights": ["averaged"]},
            },
            "no mail of all of them travels",
        ),
        ({"levels": {"recipe": "slowmo", "tau": {"qsr": {"base": 2.5, "coefficient": 0.1}}}}, "QSR.base=2.5"),
        (
            {
                "agents": 2,
                "levels": [
                    {
                        "when": {"every": {"tau": 4}},
                        "mix": {"exact": {"weighted": "steps"}},
                        "move": {"pull": {"alpha": 0.5}},
                    }
                ],
            },
            "weighted='steps' has no effect: in a run all agents take equally many steps",
        ),
    ],
)
def test_run_files_that_training_would_refuse_are_refused(
    sections: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        small_config(tmp_path, **sections)


def test_gossips_take_no_rules() -> None:
    with pytest.raises(ValueError, match="no mail"):
        crowd(dpsgd(tau=ADACOMM), 2)  # pyright: ignore[reportArgumentType] - that is what is refused
