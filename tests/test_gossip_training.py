"""A run whose agents gossip: they are evaluated, exported and resumed as agents that do not hold the same weights."""

from pathlib import Path
from typing import Any

import pytest
import torch

from dist_lookahead import Copy, Every, Gossip, Level, OnePeerExponential, Ring, dpsgd, slowmo
from dist_lookahead.train.command import main
from dist_lookahead.train.config import Config, ConfigError, parse_config
from dist_lookahead.train.export import export
from tests.training import Crash, crash_before, differences, final_states, folder_of, records, small_config, train

AVERAGED = {"evaluation": {"weights": ["averaged"]}, "agents": 4}
LEVELS: dict[str, dict[str, Any]] = {
    "gossip": {"recipe": "dpsgd", "topology": "one_peer_exponential"},
    "gossip with slow weights": {
        "recipe": "slowmo_over",
        "base": [{"when": {"every": {"tau": 1}}, "mix": "gossip", "move": {"pull": {"alpha": 0.5, "beta": 0.3}}}],
        "tau": 4,
        "beta": 0.2,
    },
}


def gossiping(folder: Path, **sections: Any) -> Config:
    return small_config(folder, **({"levels": LEVELS["gossip"]} | AVERAGED | sections))


def test_agents_are_evaluated_at_their_mean_and_that_is_what_is_exported(tmp_path: Path) -> None:
    """Breaks if agent 0's own weights were taken for those of all."""
    config = gossiping(tmp_path)
    train(config)
    evaluations = [record for record in records(folder_of(config)) if record["kind"] == "evaluation"]
    assert {record["weights"] for record in evaluations} == {"averaged"}
    states = [state["model"] for state in final_states(folder_of(config), agents=4)]
    assert "mean of all agents' fast weights" in export(folder_of(config), tmp_path / "model.pt")
    exported = torch.load(tmp_path / "model.pt", weights_only=True)
    for name, tensor in exported.items():
        torch.testing.assert_close(tensor, torch.stack([state[name] for state in states]).mean(dim=0))
    assert any(not torch.equal(exported[name], states[0][name]) for name in exported)


def test_no_agent_measures_a_mean_that_it_does_not_have(tmp_path: Path) -> None:
    config = gossiping(tmp_path)
    train(config)
    syncs = [record for record in records(folder_of(config)) if record["kind"] == "sync"]
    assert len(syncs) == 13
    assert not any("spread" in record for record in syncs)


@pytest.mark.parametrize("levels", LEVELS)
def test_a_resumed_run_is_the_one_that_never_stopped(
    levels: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Breaks if the turn of a graph, or an agent's own slow weights, were not saved."""
    whole, broken = (gossiping(tmp_path / name, levels=LEVELS[levels]) for name in ("whole", "broken"))
    train(whole)
    with monkeypatch.context() as patch:
        crash_before(8, patch)
        with pytest.raises(Crash):
            train(broken)
    train(broken, resume=True)
    unbroken, resumed = (final_states(folder_of(config), agents=4) for config in (whole, broken))
    assert not list(differences(unbroken, resumed))
    assert records(folder_of(whole)) == records(folder_of(broken))


def test_levels_below_a_recipe_are_read_short_and_in_full(tmp_path: Path) -> None:
    short = {"when": {"every": {"tau": 2}}, "mix": {"gossip": {"topology": "one_peer_exponential"}}, "move": "copy"}
    base = Level(Every(2), Gossip(topology=OnePeerExponential()), Copy())
    for written in (short, {"level": short}):
        config = gossiping(tmp_path, levels={"recipe": "slowmo_over", "base": [written], "tau": 4})
        assert config.levels_stack() == [base, *slowmo(4)]
        assert parse_config(config.resolved()) == config
    assert gossiping(tmp_path, levels={"recipe": "dpsgd"}).levels_stack() == dpsgd(Ring())


REFUSED = [
    (
        {"evaluation": {"weights": ["slow"]}},
        r"evaluation.weights=\['slow'\]: after a sync of these levels agents have slow weights",
    ),
    ({"sync": {"check_every": 3}}, "sync.check_every=3 has no effect on levels that never average exactly"),
    ({"levels": {"recipe": "dpsgd", "topology": "slowmo"}}, "levels.topology='slowmo' is unknown"),
    ({"levels": {"recipe": "dpsgd", "topology": "exact"}}, "levels.topology='exact' is unknown"),
    (
        {"levels": [{"when": {"every": {"tau": 1}}, "mix": {"gossip": {"axis": "rack"}}, "move": "copy"}]},
        r"levels\[0\].mix.gossip.axis='rack' is unknown; allowed: node, local, world",
    ),
    ({"levels": {"recipe": "slowmo_over", "base": "dpsgd"}}, "levels.base='dpsgd' must be a list of levels"),
    ({"levels": {"recipe": "slowmo_over", "base": [{"when": 3}]}}, r"levels.base\[0\].mix is missing"),
    ({"levels": {"recipe": "slowmo_over"}}, "levels.base is missing: slowmo_over needs it"),
    (
        {"levels": {"recipe": "dpsgd", "topology": {"graph": {"weights_of_turns": [[1, 1], [0, 0]]}}}},
        r"rows of the weights sum to",
    ),
]


@pytest.mark.parametrize(("sections", "sentence"), REFUSED)
def test_what_a_run_that_gossips_cannot_do_is_refused(sections: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=sentence):
        gossiping(tmp_path, **sections)


def test_theory_looks_at_all_agents_that_gossip_or_says_that_there_are_too_many(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(gossiping(tmp_path, levels={"recipe": "dpsgd"}).to_yaml(), encoding="utf-8")
    assert main(["theory", str(file), "--agents", "6"]) == 0
    text = capsys.readouterr().out
    assert "spectrum: moduli 1.000, 0.667 (2 times), 0.333, 0.000 (2 times)" in text
    assert "over the neighbours in a graph, Ring" in text
    assert main(["theory", str(file), "--agents", "64"]) == 2
    assert "of agents that gossip all are looked at; use --agents 32 or fewer" in capsys.readouterr().err
