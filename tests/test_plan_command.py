"""`dist-lookahead plan`: the search, its rule, the file that it writes, and what it refuses."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead import Quantised, local_sgd, slowmo
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.mesh import NODES, Mesh
from dist_lookahead.planner.advice import exposed_after, stretch
from dist_lookahead.planner.forecast import Forecast
from dist_lookahead.planner.link import Link, Transfer
from dist_lookahead.planner.variants import Variant, shapes
from dist_lookahead.train.command import main
from dist_lookahead.train.config import Config, load_config
from dist_lookahead.train.exchange import sum_over_agents
from dist_lookahead.train.plan import Candidate, Plan, Target, choose, make_plan
from dist_lookahead.train.plan_facts import Asked, Facts, asked_links, asked_mesh, facts_of
from dist_lookahead.train.plan_file import with_levels
from dist_lookahead.train.plan_measure import Sample, link_from, measured_links
from dist_lookahead.train.plan_price import price_of
from dist_lookahead.train.recorder import read_metrics
from dist_lookahead.train.world import join_world
from tests.launching import run
from tests.processes import run_processes
from tests.training import folder_of, small_config, train

CPU = torch.device("cpu")


def facts(mesh: Mesh, bandwidth: float, step_seconds: float = 0.01) -> Facts:
    link = Link(bandwidth=bandwidth)
    links = {axis: link for axis in (*mesh.names, "world")}
    return Facts(step_seconds=step_seconds, links=links, mesh=mesh, device=CPU, measured=False)


def planned(config: Config, bandwidth: float, **target: Any) -> Plan:
    given = facts(Mesh((2, 1), NODES), bandwidth)
    return make_plan(config, config.build_task(), given, Target(**target), lambda _: None)


def long_config(tmp_path: Path, **sections: Any) -> Config:
    return small_config(tmp_path, run={"steps": 5000}, checkpoint={"every": 5000}, **sections)


def candidate(config: Config, exposed: float, tau: int, *changes: str, seconds: float = 1.0) -> Candidate:
    told = Forecast(
        seconds=seconds, exposed_seconds=exposed * seconds, arithmetic_seconds=0.0, bytes_sent=1.0, copies=2.0
    )
    variant = Variant(changes=changes, levels=tuple(slowmo(tau)))
    return Candidate(variant=variant, config=config, weights=4, forecast=told, price=None)


def test_the_rule(tmp_path: Path) -> None:
    """The file's own, else the smallest tau, else the fewest changes, else the fastest; else the least exposed."""
    config = small_config(tmp_path)
    own, longer = candidate(config, 0.5, 4), candidate(config, 0.01, 64)
    coded, both = candidate(config, 0.04, 16, "8 bits"), candidate(config, 0.01, 16, "8 bits", "landing 3 later")
    faster = candidate(config, 0.04, 16, "bf16", seconds=0.5)
    assert choose([own, longer, both, coded, faster], 0.05) is faster
    assert choose([own, longer, both, coded], 0.05) is coded
    assert choose([own, longer], 0.05) is longer
    assert choose([own, longer], 0.005) is longer, "none meets it: the nearest"
    assert choose([candidate(config, 0.05, 4), coded], 0.05).variant.changes == ()


def test_the_search_meets_the_target_and_says_so_of_a_file_that_trains(tmp_path: Path) -> None:
    config = long_config(tmp_path)
    plan = planned(config, bandwidth=1e6)
    assert plan.candidates[0].forecast.exposed > 0.05
    assert plan.chosen.forecast.exposed <= 0.05
    assert plan.chosen.config.levels_stack() == list(plan.chosen.variant.levels)
    taus = [one.tau for one in plan.candidates if not one.variant.changes]
    assert taus == [4 * 2**k for k in range(len(taus))]
    assert {"bf16", "8 bits", "4 parts"} <= {one.variant.name for one in plan.candidates}
    assert any("later" in one.variant.name for one in plan.candidates)


def test_a_file_that_meets_the_target_stays_as_it_is(tmp_path: Path) -> None:
    plan = planned(long_config(tmp_path), bandwidth=1e9)
    assert plan.chosen is plan.candidates[0]
    shorter = [one.tau for one in plan.candidates if not one.variant.changes]
    assert shorter[:2] == [4, 2], "shorter rounds are shown as long as they meet it"


def test_a_plan_counts_the_bytes_of_a_run(tmp_path: Path) -> None:
    """Metrics of each sync included: else the trainer's own ledger would say something else than the plan."""
    levels = {"recipe": "slowmo", "tau": 4, "beta": 0.2, "codec": {"quantised": {"bits": 8}}}
    config = long_config(tmp_path, agents=2, levels=levels)
    mesh = Mesh((1, 2), NODES)
    plan = make_plan(config, config.build_task(), facts(mesh, 1e9), Target(), lambda _: None)
    short = small_config(tmp_path, agents=2, levels=levels, run={"steps": 17}, evaluation={"every": None})
    train(short)
    sent = {r["step"]: r["bytes_sent"] for r in read_metrics(folder_of(short) / "metrics.jsonl") if r["kind"] == "sync"}
    assert plan.candidates[0].forecast.bytes_sent == (sent[16] - sent[8]) / 8


def test_a_plan_counts_the_copy_that_going_on_without_lost_agents_costs(tmp_path: Path) -> None:
    going_on = {"faults": {"agents": "elastic", "on_lost_agent": "continue"}}
    stops, goes_on = (planned(long_config(tmp_path, agents=1, **faults), bandwidth=1e9) for faults in ({}, going_on))
    own, recoverable = (plan.candidates[0].forecast.copies for plan in (stops, goes_on))
    assert own == pytest.approx(2, abs=0.1)
    assert recoverable == pytest.approx(3, abs=0.1)


def test_what_the_run_refuses_is_not_offered(tmp_path: Path) -> None:
    """Where local SGD's averages land later nobody has the slow weights that the file evaluates."""
    plan = planned(long_config(tmp_path, levels={"recipe": "local_sgd", "tau": 4}), bandwidth=1e6)
    (reason,) = (reason for change, reason in plan.refused.items() if re.fullmatch(r"landing \d+ later", change))
    assert "averaged" in reason
    assert not any(one.variant.changes and "later" in one.variant.changes[0] for one in plan.candidates)


def test_levels_are_written_as_the_files_recipe_where_that_has_words_for_them(tmp_path: Path) -> None:
    config = long_config(tmp_path)
    same = with_levels(config, slowmo(16, beta=0.2, delay=3, codec=Quantised(bits=8)))
    assert same.levels.recipe == "slowmo"
    assert same.levels.arguments["delay"] == 3
    assert with_levels(config, local_sgd(16)).levels.recipe is None


def test_nodes_of_several_agents_are_offered_averages_inside_them() -> None:
    mesh = Mesh((2, 4), NODES)
    names = [variant.name for variant in shapes(slowmo(tau=12), mesh)]
    assert "local averages below" in names
    (near,) = (variant for variant in shapes(slowmo(tau=12), mesh) if variant.name == "local averages below")
    assert [(level.when.tau, getattr(level.mix, "axis", None)) for level in near.levels] == [
        (12, "local"),
        (24, "node"),
    ]


def test_the_price_of_longer_rounds_grows(tmp_path: Path) -> None:
    inner = small_config(tmp_path).inner
    short, long = (price_of(local_sgd(tau), 4, inner) for tau in (8, 64))
    assert short is not None
    assert long is not None
    assert short.drift is not None
    assert long.drift == pytest.approx(short.drift * 63 / 7)
    slow = price_of(slowmo(512), 4, inner)
    assert slow is not None
    assert slow.half_life > 10 * long.half_life, "slow momentum waits for the ends of rounds"


def test_a_link_is_found_from_what_it_does() -> None:
    link = Link(bandwidth=2e6, latency=0.003)
    sent = [Transfer(axis="node", collective="all_reduce", nbytes=n, agents=4) for n in (1024, 4096, 10**6)]
    found = link_from([Sample(transfer=one, seconds=link.seconds(one)) for one in sent])
    assert found.bandwidth == pytest.approx(2e6)
    assert found.latency == pytest.approx(0.003, rel=0.1)


def test_a_run_says_how_much_longer_its_rounds_must_be() -> None:
    for seconds, exposed in ((10.0, 9.0), (10.0, 1.0), (7.0, 0.36)):
        times = stretch(seconds, exposed)
        assert exposed_after(seconds, exposed, times) <= 0.05
        assert times == 1 or exposed_after(seconds, exposed, times / 2) > 0.05
    assert stretch(10.0, 0.5) == 1


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        (Asked(), "give --nodes N"),
        (Asked(nodes=0), "--nodes 0 must be at least 1"),
        (Asked(nodes=2), "nothing is said of the link along 'node'.*--bandwidth 100mbit"),
        (Asked(nodes=2, per_node=2, bandwidth="1gbit"), "along 'local'.*--link local=10gbit"),
        (Asked(nodes=2, latency="1ms"), "--latency 1ms has no effect without --bandwidth"),
        (Asked(nodes=2, bandwidth="1gbit", links=("local=1gbit",)), "--link local=.*there are node"),
        (Asked(nodes=2, bandwidth="1gbit", links=("node=1gbit",)), "the same link"),
        (Asked(nodes=2, bandwidth="1gb"), "kbit, mbit, gbit"),
    ],
)
def test_options_that_say_too_little_or_too_much_are_refused(asked: Asked, says: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=says):
        asked_links(asked_mesh(small_config(tmp_path), asked), asked)


def test_what_is_measured_cannot_be_given(tmp_path: Path) -> None:
    config = small_config(tmp_path)
    with (
        join_world(agents=1, device="cpu", timeout=60) as world,
        pytest.raises(ValueError, match="--nodes, --link: und"),
    ):
        facts_of(config, config.build_task(), world, Asked(nodes=2, links=("node=1gbit",)), distributed=True)


def test_agents_of_a_node_share_its_link() -> None:
    asked = Asked(bandwidth="80mbit", latency="5ms", links=("local=8gbit",))
    links = asked_links(Mesh((2, 4), NODES), asked)
    assert links["node"] == Link(bandwidth=2.5e6, latency=0.005)
    assert links["world"].bandwidth == 1e7, "a ring of all agents crosses between the nodes once"


def test_the_command_writes_a_file_that_is_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "planned" / "run.yaml"
    file.write_text(long_config(tmp_path).to_yaml(), encoding="utf-8")
    links = ["--nodes", "4", "--bandwidth", "2mbit", "--latency", "1ms", "--exposed", "10%", "--max-tau", "64"]
    assert main(["plan", str(file), *links, "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "at most 10 %" in printed
    assert "Recommended" in printed or "The nearest to it" in printed
    assert main(["validate", str(out)]) == 0
    own, written = load_config(file), load_config(out)
    assert written.model_copy(update={"levels": own.levels}) == own, "nothing but the levels is changed"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--nodes", "2", "--bandwidth", "1gbit", "--exposed", "0"], "above 0"),
        (["--nodes", "2", "--bandwidth", "1gbit", "--set", "levels.tau={qsr: {base: 4, coefficient: 0.1}}"], "number"),
        (["--nodes", "2", "--bandwidth", "1gbit", "--set", "levels.tau=6000"], "no sync would ever be due"),
        (["--bandwidth", "1gbit"], "--nodes"),
    ],
)
def test_what_cannot_be_planned_is_refused_with_status_2(
    arguments: Sequence[str], says: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(long_config(tmp_path).to_yaml(), encoding="utf-8")
    assert main(["plan", str(file), *arguments]) == 2
    assert says in capsys.readouterr().err


def measure() -> tuple[dict[str, list[float]], float, float]:
    communicator = ProcessGroupCommunicator(Mesh((2, 1), NODES))
    links = measured_links(communicator, CPU, nbytes=100_000)
    before = communicator.seconds_syncing - communicator.seconds_waiting
    sum_over_agents([communicator], [[1.0]], CPU)
    return {axis: [link.bandwidth, link.latency] for axis, link in links.items()}, before, communicator.seconds_waiting


@pytest.mark.timeout(100)
def test_two_processes_find_the_same_links_and_count_their_waiting() -> None:
    """Agents that found other links would go on to other sizes, and wait for each other for ever."""
    (links, rest, waiting), (others, *_) = run_processes(measure, 2)
    assert links == others
    assert set(links) == {"node", "local", "world"}
    assert min(links["world"]) > 0
    assert waiting > 0
    assert rest > 0, "waiting is a part of the seconds in syncs"


@pytest.mark.timeout(200)
def test_under_torchrun_agents_and_links_are_measured(tmp_path: Path) -> None:
    file, out = tmp_path / "run.yaml", tmp_path / "planned.yaml"
    file.write_text(long_config(tmp_path).to_yaml(), encoding="utf-8")
    done = run(["plan", str(file), "--max-tau", "8", "--out", str(out)], processes=2)
    assert done.returncode == 0, done.stdout
    assert "links of an agent, measured" in done.stdout
    assert done.stdout.count("Rule:") == 1, "one of the agents speaks"
    assert main(["validate", str(out)]) == 0
