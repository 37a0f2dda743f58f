"""A run goes on with another number of agents: its slow state exactly, and each sample once."""

import itertools
import logging
import signal
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.tasks.task import Batch, Key
from dist_lookahead.tasks.vision import VisionTask
from dist_lookahead.train import config_elastic, elastic
from dist_lookahead.train.agent import Agent
from dist_lookahead.train.checkpoint import CheckpointStore
from dist_lookahead.train.config import Config, ConfigError
from dist_lookahead.train.course import Course
from dist_lookahead.train.eras import Eras
from dist_lookahead.train.run_directory import RunDirectory
from dist_lookahead.train.sampler import BatchSampler
from dist_lookahead.train.trainer import Trainer
from dist_lookahead.train.world import World
from tests.processes import run_processes
from tests.training import Crash, crash_before, differences, final_states, small_config, train

pytestmark = pytest.mark.timeout(240)

ELASTIC: dict[str, Any] = {"faults": {"agents": "elastic"}}
SAMPLES = 1437  # of the digits
STATE = {"weights": torch.ones(2)}


# --- samples, epochs and learning rates


def read(eras: Eras, steps: int) -> Counter[tuple[int, int]]:
    """Count what all agents have read together after so many fast steps, 5 samples each of 100."""
    seen: Counter[tuple[int, int]] = Counter()
    for begin, end, agents in eras.parts(steps):
        place: dict[str, Any] = {"since": begin, "before": eras.turns(begin) * 5}
        for rank in range(agents):
            own = BatchSampler(samples=100, batch_size=5, rank=rank, agents=agents, seed=1, **place)
            seen.update(key for step in range(begin, end) for key in own.batch(step))
    return seen


@pytest.mark.parametrize("begun", [((0, 3), (4, 2)), ((0, 2), (3, 3), (7, 1), (8, 4)), ((0, 3),)])
def test_each_sample_of_an_epoch_is_read_once_whatever_the_number_of_agents(begun: Any) -> None:
    eras = Eras(begun)
    steps = eras.step_of(45)
    seen = read(eras, steps)
    assert max(seen.values()) == 1
    assert {index for epoch, index in seen if epoch == 0} == set(range(100))
    assert {index for epoch, index in seen if epoch == 1} == set(range(100))
    assert sum(seen.values()) == eras.turns(steps) * 5 < 5 * (45 + eras.agents)


def course(*begun: tuple[int, int], **sections: Any) -> Course:
    config = small_config(Path("nowhere"), run={"steps": None, "epochs": 10}, data={"batch_size": 4}, **sections)
    return Course(config, samples=1200, eras=Eras(begun))


def test_epochs_stay_as_many_and_learning_rates_go_on_where_they_were() -> None:
    """Breaks if anything is counted in fast steps, of which there are more for as many samples with fewer agents."""
    cosine: dict[str, Any] = {"lr_schedule": {"name": "cosine", "warmup": 1, "unit": "epochs"}}
    whole, fewer = course((0, 3), **cosine), course((0, 3), (500, 2), **cosine)
    assert (whole.total, fewer.total) == (1000, 500 + 750)
    assert fewer.epochs(500) == pytest.approx(whole.epochs(500)) == 5
    assert fewer.epochs(fewer.total) == 10
    for turns in (0, 60, 300, 1500, 1506, 2400, 2994):
        steps = (whole.eras.step_of(turns), fewer.eras.step_of(turns))
        assert fewer.rate_factor(steps[1]) == pytest.approx(whole.rate_factor(steps[0]), abs=1e-12)


def test_milestones_in_epochs_of_a_run_of_so_many_steps_are_found_by_samples() -> None:
    rates = {"lr_schedule": {"name": "multistep", "milestones": [5, 8], "unit": "epochs"}}
    config = small_config(Path("nowhere"), run={"steps": 3600}, data={"batch_size": 4}, **rates)
    run = Course(config, samples=1200, eras=Eras(((0, 3), (600, 2))))
    assert run.total == 3600
    drops = [step for step in range(1, 3600) if run.rate_factor(step) < 0.5 * run.rate_factor(step - 1)]
    assert drops == [500, 900]


def test_evaluations_stay_at_the_same_epochs() -> None:
    run = course((0, 3), (250, 2), evaluation={"every": 1, "unit": "epochs"})
    due = [run.next_evaluation(0)]
    while due[-1] < run.total:
        due.append(run.next_evaluation(due[-1]))
    assert due[:4] == [100, 200, 325, 475]


@pytest.mark.parametrize("agents", [1, 2, 3, 5])
def test_with_one_number_of_agents_all_is_counted_as_ever(agents: int) -> None:
    """To the last bit: records and learning rates of runs from before must not change."""
    config = small_config(Path("nowhere"), run={"steps": None, "epochs": 1.7}, lr_schedule={"name": "cosine"})
    run = Course(config, samples=SAMPLES, eras=Eras(((0, agents),)))
    length = config.length(samples=SAMPLES, agents=agents)
    assert run.total == length.total
    factor: Any = config.lr_schedule.factor(length)
    for step in range(0, run.total, 7):
        assert run.rate_factor(step) == factor(step)
        assert run.epochs(step) == step / (SAMPLES / (config.feed.batch_size * agents))


@pytest.mark.parametrize("begun", [(), ((1, 2),), ((0, 2), (0, 3)), ((0, 2), (5, 0))])
def test_eras_that_cannot_be_are_refused(begun: Any) -> None:
    with pytest.raises(ValueError, match="must be pairs of a fast step and a number of agents"):
        Eras(begun)


# --- checkpoints


def slow_state(trainer: Trainer) -> dict[str, Any]:
    stack = trainer.agents[0].optimizer.stack.state_dict()
    levels = [{name: level[name] for name in ("slow", "momentum", "rounds", "due")} for level in stack["levels"]]
    return {"clock": stack["clock"], "levels": levels, "buffers": stack["buffers"]}


def live(config: Config, folders: Sequence[Path], resume: bool) -> dict[str, Any]:
    """Train one life of a run, and tell what there was at its beginning, and which samples this agent has read."""
    elastic.PIECE = 10_000
    read: list[Key] = []
    original = VisionTask.train_batch

    def train_batch(self: VisionTask, keys: Sequence[Key]) -> Batch:
        read.extend(keys)
        return original(self, keys)

    VisionTask.train_batch = train_batch
    said: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())
    logging.getLogger(elastic.__name__).addHandler(handler)
    world = World([ProcessGroupCommunicator()], torch.device("cpu"))
    directory = RunDirectory(folders[world.communicators[0].rank])
    trainer = Trainer(config, config.build_task(), world, directory, resume=resume)
    agent = trainer.agents[0]
    began = {
        "slow": slow_state(trainer),
        "model": {name: tensor.clone() for name, tensor in agent.model.state_dict().items()},
        "fast": agent.optimizer.inner.state_dict()["state"],
        "step": trainer.step,
    }
    began = copied(began)
    outcome = trainer.run()
    return {**began, "keys": read, "said": said, "steps": outcome.step, "total": trainer.course.total}


def copied(state: Any) -> Any:
    """Copy what the run is about to change."""
    if isinstance(state, torch.Tensor):
        return state.clone()
    if isinstance(state, dict):
        return {name: copied(value) for name, value in state.items()}
    return [copied(value) for value in state] if isinstance(state, list) else state


def life(config: Config, *folders: Path, resume: bool = True) -> list[dict[str, Any]]:
    return run_processes(live, len(folders), config, folders, resume)


def part_of_an_epoch(folder: Path, epochs: float, **sections: Any) -> Config:
    run = {"steps": None, "epochs": epochs}
    data = {"batch_size": 32}
    return small_config(folder, run=run, data=data, checkpoint={"every": 3}, **{**ELASTIC, **sections})


@pytest.mark.parametrize(("before", "after"), [(3, 2), (2, 3)])
def test_another_number_of_agents_goes_on_from_the_slow_state_with_the_rest_of_the_samples(
    before: int, after: int, tmp_path: Path
) -> None:
    """The last agent has a disk of its own: what it does not see is sent to it."""
    shared, apart = tmp_path / "shared", tmp_path / "apart"
    first = life(part_of_an_epoch(tmp_path, 0.5), *[shared] * before, resume=False)
    step = first[0]["steps"]
    saved = [CheckpointStore(shared / "checkpoints", agent, before).load(step) for agent in range(before)]

    folders = [shared] * (after - 1) + [apart]
    second = life(part_of_an_epoch(tmp_path, 1), *folders)
    stack = saved[0]["agent"]["optimizer"]["levels"]
    levels = [{name: level[name] for name in ("slow", "momentum", "rounds", "due")} for level in stack["levels"]]
    expected = {"clock": step, "levels": levels, "buffers": stack["buffers"]}
    for rank, agent in enumerate(second):
        assert list(differences(agent["slow"], expected)) == []
        assert list(differences(agent["model"], saved[0]["agent"]["model"])) == []
        own = saved[rank]["agent"]["optimizer"]["state"] if rank < min(before, after - 1) else {}
        assert list(differences(agent["fast"], own)) == []

    seen = Counter(key for agent in [*first, *second] for key in agent["keys"])
    assert max(seen.values()) == 1
    assert {index for epoch, index in seen if epoch == 0} == set(range(SAMPLES))
    assert sum(seen.values()) < SAMPLES + 32 * after
    # The number that it has now is found beside the one that it had, and the newest step counts.
    (again, *_) = life(part_of_an_epoch(tmp_path, 1.2), *folders)
    assert again["step"] == second[0]["steps"]


def test_codes_and_levels_below_go_on_too(tmp_path: Path) -> None:
    levels = [
        {"when": {"every": {"tau": 2}}, "mix": "alone", "move": {"pull": {"alpha": 0.5}}},
        {
            "when": {"every": {"tau": 4}},
            "mix": {"exact": {"codec": {"quantised": {"bits": 8}}}},
            "move": {"pull": {"alpha": 0.9, "beta": 0.3}},
        },
    ]
    sections: dict[str, Any] = {**ELASTIC, "levels": levels}
    life(small_config(tmp_path, run={"steps": 8}, **sections), *[tmp_path] * 3, resume=False)
    first, second = life(small_config(tmp_path, run={"steps": 12}, **sections), *[tmp_path] * 2)
    assert (first["step"], first["steps"]) == (8, 12)
    assert list(differences(first["slow"], second["slow"])) == []
    saved = CheckpointStore(tmp_path / "checkpoints", 1, 3, elastic=True).load(8)["agent"]["optimizer"]["levels"]
    momentum = [level["momentum"] for level in first["slow"]["levels"]]
    assert list(differences(momentum, [level["momentum"] for level in saved["levels"]])) == []
    (said,) = first["said"]
    assert said.startswith("going on with 2 agents in place of 3 from fast step 8: slow weights, slow momentum and")
    assert said.endswith(": agents [0, 1] have their own, agents [] begin anew; what codes have lost is dropped")


def test_an_agent_that_has_lost_its_disk_is_sent_what_others_have(tmp_path: Path) -> None:
    here, there, new = (tmp_path / name for name in ("here", "there", "new"))
    life(small_config(tmp_path, run={"steps": 8}, **ELASTIC), here, there, resume=False)
    first, second = life(small_config(tmp_path, run={"steps": 12}, **ELASTIC), here, new)
    assert (first["step"], second["step"]) == (8, 8)
    assert list(differences(first["slow"], second["slow"])) == []
    assert first["fast"]
    assert not second["fast"]


def told(config: Config, folder: Path) -> str:
    try:
        live(config, [folder] * 2, resume=True)
    except ValueError as error:
        return str(error)
    return "goes on"


def test_the_middle_of_a_round_is_refused_and_said_on_every_agent(tmp_path: Path) -> None:
    """A run that was not elastic saves at any step, where each agent has weights of its own."""
    train(small_config(tmp_path, run={"steps": 7}, agents=3))
    folder = tmp_path / "small"
    for path in folder.glob("checkpoints/step-00000007/*"):
        path.unlink()  # that of the end, where all have met
    (said,) = set(run_processes(told, 2, small_config(tmp_path, **ELASTIC), folder))
    assert "was saved in the middle of a round, where agents hold weights of their own: start the run with 3" in said
    for said in run_processes(told, 2, small_config(tmp_path), folder):
        assert "was written by a run of 3 agents, and this run has 2: start it with 3 agents, or let it go on" in said
        assert "faults.agents: elastic" in said


def test_checkpoints_are_written_where_agents_meet_and_resume_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Due at 3, 6, 9 and 12, and at the end; there are syncs after 4, 8, 12."""
    with monkeypatch.context() as patch:
        crash_before(11, patch)
        with pytest.raises(Crash):
            train(small_config(tmp_path / "crashed", checkpoint={"keep": 9}, **ELASTIC))
    store = CheckpointStore(tmp_path / "crashed" / "small" / "checkpoints", 0, 1)
    assert store.steps() == [4, 8]
    train(small_config(tmp_path / "crashed", checkpoint={"keep": 9}, **ELASTIC), resume=True)
    assert store.steps() == [4, 8, 12, 13]
    train(small_config(tmp_path / "whole"))
    crashed, whole = (final_states(tmp_path / name / "small") for name in ("crashed", "whole"))
    assert list(differences(crashed, whole)) == []


@pytest.mark.parametrize(("agents", "step"), [("fixed", 6), ("elastic", 8)])
def test_a_signal_stops_where_all_agents_hold_the_same(
    agents: str, step: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sync of the level below says that a signal has come, and is no moment to save at for another number."""
    original = Agent.backward

    def backward(agent: Agent, factor: float) -> None:
        if agent.step == 4:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0.2)  # until the thread that waits for it has heard
        original(agent, factor)

    monkeypatch.setattr(Agent, "backward", backward)
    levels = [{"when": {"every": {"tau": tau}}, "mix": "exact", "move": "copy"} for tau in (2, 4)]
    stopped = train(small_config(tmp_path, levels=levels, faults={"agents": agents}))
    assert (stopped.signal, stopped.step) == (signal.SIGTERM, step)


def test_checkpoints_of_other_numbers_lie_beside_and_go_when_they_are_old(tmp_path: Path) -> None:
    olds = [CheckpointStore(tmp_path, agent, 3, elastic=True) for agent in range(3)]
    for old, step in itertools.product(olds, (10, 20, 30)):
        old.save(step, STATE, common=-1)
    new = CheckpointStore(tmp_path, 0, 2, keep=2, elastic=True)
    assert new.survey().seen == [[30, 3]]
    new.drop_after(20)
    assert [old.steps() for old in olds] == [[10, 20]] * 3, (
        "what came after the step that the run went on from belongs to another life"
    )
    new.save(40, STATE, common=20)
    assert [old.steps() for old in olds] == [[20]] * 3
    new.save(50, STATE, common=40)
    assert (new.steps(), olds[2].steps()) == ([40, 50], [])
    assert new.survey().seen == []


# --- what does not go together


@pytest.mark.parametrize(
    ("sections", "sentence"),
    [
        ({"agents": 2}, "agents=2: simulated agents are one process"),
        ({"mesh": {"node": 1, "local": 1}}, "mesh={'node': 1, 'local': 1}, which says how many agents there are"),
        ({"inner": {"name": "SGD", "lr": 0.05, "data_parallel": "ddp"}}, "inner.data_parallel='ddp', where some"),
        (
            {"levels": {"recipe": "slowmo", "tau": 4, "beta": 0.2, "delay": 1}},
            "levels[0].when.every.delay=1: an average",
        ),
        ({"levels": {"recipe": "dpsgd"}}, "after it agents hold different weights; use mix: exact"),
        (
            {"levels": {"recipe": "slowmo", "tau": 4, "beta": 0.2, "shard": True}},
            "levels[0].mix.exact.shard=true: each file holds the part of one agent",
        ),
        (
            {"levels": [{"when": {"every": {"tau": 4}}, "mix": {"exact": {"axis": "node"}}, "move": "copy"}]},
            "levels[0].mix.exact.axis='node': who is in it changes",
        ),
        ({"levels": {"recipe": "lookahead", "tau": 4}}, "levels[0].mix=Alone(): the outermost level must average"),
        (
            {
                "levels": [
                    {"when": {"every": {"tau": 2}}, "mix": "alone", "move": {"pull": {"alpha": 0.5, "beta": 0.5}}},
                    {"when": {"every": {"tau": 4}}, "mix": "exact", "move": "copy"},
                ]
            },
            "each agent has a slow momentum of its own for good; use beta: 0",
        ),
    ],
)
def test_what_depends_on_the_number_of_agents_is_refused(sections: dict[str, Any], sentence: str) -> None:
    with pytest.raises(ConfigError) as refused:
        small_config(Path("nowhere"), **sections, **ELASTIC)
    assert any(
        fault.startswith("faults.agents='elastic' with ") and sentence in fault for fault in refused.value.faults
    )


@pytest.mark.parametrize(
    ("task", "reason"), [("language", "each row of its batches"), ("quadratic", "kinds of agents")]
)
def test_tasks_whose_samples_belong_to_agents_are_refused(task: str, reason: str) -> None:
    config = small_config(Path("nowhere"), **ELASTIC)
    (fault,) = config_elastic.elastic(config.faults, task, 1, None, config.inner, config.levels)
    assert fault.startswith(f"faults.agents='elastic' with task='{task}': ")
    assert reason in fault
