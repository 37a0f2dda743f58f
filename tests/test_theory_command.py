"""`dist-lookahead theory`: what it prints is what the theory, or a formula written here, says."""

import math
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dist_lookahead import Alone, DistributedLookahead, Every, Exact, Level, Pull, local_sgd, lookahead, slowmo, theory
from dist_lookahead.theory import closed_forms
from dist_lookahead.train.command import main
from dist_lookahead.train.config import load_config, parse_config
from dist_lookahead.train.theory_report_mixing import mixing_lines
from dist_lookahead.train.theory_report_text import number
from tests.training import small_config

ROOT = Path(__file__).parent.parent
CONFIGS = sorted(path for path in (ROOT / "configs").glob("*/*.yaml") if path.parent.name != "sweeps")


def written(folder: Path, **sections: Any) -> str:
    file = folder / "run.yaml"
    sections.setdefault("inner", {"name": "SGD", "lr": 0.05})
    file.write_text(small_config(folder, **sections).to_yaml(), encoding="utf-8")
    return str(file)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["theory", *arguments]) == 0, capsys.readouterr().err
    return capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["theory", *arguments]) == 2
    shown = capsys.readouterr()
    assert not shown.out
    return shown.err


def in_one_line(text: str) -> str:
    return " ".join(text.split())


def rows_of(text: str) -> dict[str, list[str]]:
    """The table of noisy quadratics: cells after the first column, by that column."""
    lines = text.split("curvature  per round")[1].split("\n\n")[0].splitlines()[1:]
    return {line.split()[0]: line.split()[1:] for line in lines}


# --- one file in full

EXPECTED = """\
small: 13 fast steps of 2 agents, SGD with learning rate 0.05

Levels, innermost first
    levels[0]  every 4 fast steps, over all agents; fast buffers are kept
               d = mean x - z0,  v0 <- 0.2 v0 + d,  z0 <- z0 + v0,  x <- z0   (v0 follows the rate)

Syncs as matrices
    P where levels[0] fires, new X = (X - gamma G) P:
         x0   x1   z0   v0
    x0  0.5  0.5  0.5  0.5
    x1  0.5  0.5  0.5  0.5
    z0    0    0    0   -1
    v0  0.2  0.2  0.2  0.2
    spectrum: 1, beta = 0.2, 0 (2 times)

The mean that moves like SGD
    P a = a for a = 0.625 for each x, -0.25 for z0, 0.25 for v0
    y = X a = 1.25 mean x - 0.25 z0 + 0.25 v0
    effective learning rate: 1.25 gamma. No sync moves y, a fast step moves it by -1.25 gamma times
    the agents' mean gradient.

Convergence
    Bound (B'): the mean of E|grad f(y)|^2 over K fast steps is at most
        1.6 Delta / (gamma K) + 0.625 gamma L sigma^2 + 2.208 gamma^2 L^2 sigma^2
    It is proved for gamma <= 0.2875 / L, so gamma = 0.05 for L up to 5.75:
        A gamma L + gamma^2 L^2 [2 (1 - A)^2 tau (tau - 1) + 4 A^2 beta^2 tau^2 / (1 - beta)^2] <=
        1, A = alpha / (1 - beta)
        gamma^2 L^2 tau (tau - 1) <= 1
    With gamma = 0.05, K = 13, in units of L = sigma = Delta = 1 (else give --smoothness, --noise,
    --gap): 2.462 + 0.03125 + 0.005521 = 2.498.
    Under slow momentum alpha = 1 - beta = 0.8 makes A = 1: the part (1 - A)^2 of the third term
    vanishes.

Noisy quadratics
    Loss a/2 (x - c)^2 with c ~ N(mu, sigma^2) anew at each step, SGD without momentum. A round of 4
    fast steps leaves a factor of the error; variances are those that settle, in units of sigma^2.
         lr x     factor  per fast     SGD's    variance     SGD's
    curvature  per round      step  per step  after sync  variance   ratio
         0.01     0.9501    0.9873      0.99     0.00313  0.005025  0.6229
          0.1     0.4472    0.8178       0.9     0.03179   0.05263  0.6041
          0.5     0.4472    0.8178       0.5      0.1816    0.3333  0.5449
            1     0.4472    0.8178   < 1e-05      0.5357         1  0.5357

Stability
    The levels are stable on quadratics up to learning rate x curvature = 2; the fast optimizer
    alone up to 2
"""


def test_the_whole_report_of_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert printed(capsys, written(tmp_path, agents=2)) == EXPECTED


def test_its_numbers_are_those_of_the_formulas() -> None:
    """1, A = alpha / (1 - beta), and the closed forms of the noisy quadratic; SGD's are 1 - ga and ga / (2 - ga)."""
    A, gamma, steps, tau, beta, n = 1.25, 0.05, 13, 4, 0.2, 2
    spread = 2 * (1 - A) ** 2 * (tau - 1) + 4 * A**2 * beta**2 * tau / (1 - beta**2)
    third = (tau - 1) * (1 - 1 / n) + spread / n
    assert number(third) == "2.208"
    terms = [2 / (A * gamma * steps), A * gamma / n, gamma**2 * third]
    assert f"{' + '.join(map(number, terms))} = {number(sum(terms))}" in EXPECTED
    quadratic = 2 * (1 - A) ** 2 * tau * (tau - 1) + 4 * A**2 * beta**2 * tau**2 / (1 - beta) ** 2
    most = min((-A + math.sqrt(A**2 + 4 * quadratic)) / (2 * quadratic), 1 / math.sqrt(tau * (tau - 1)))
    assert f"gamma <= {number(most)} / L, so gamma = 0.05 for L up to {number(most / gamma)}" in EXPECTED
    for rate, cells in rows_of(EXPECTED).items():
        ga = float(rate)
        factor, alone = closed_forms.contraction(ga, tau, 1.0, beta), closed_forms.sgd_variance(ga)
        own = closed_forms.slow_momentum_variance(ga, tau, 1.0, beta, agents=n)
        assert cells[:2] == [number(factor), number(factor ** (1 / tau))]
        assert cells[-3:] == [number(own), number(alone), number(own / alone)]
        assert ga == 1 or cells[2] == number(1 - ga)


# --- all files


@pytest.mark.parametrize("file", CONFIGS, ids=lambda file: f"{file.parent.name}-{file.stem}")
def test_every_config_has_a_report_of_100_columns(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, str(file))
    assert max(map(len, text.splitlines())) <= 100
    assert not re.search(r"\b(nan|inf)\b", text)
    assert text.splitlines()[0].startswith(f"{load_config(file).run.name}: ")


def test_configs_were_found() -> None:
    assert {file.parent.name for file in CONFIGS} >= {"digits", "cifar10", "quadratic"}


# --- agents


def test_agents_of_torchrun_are_assumed_and_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path)
    said = "The file says agents=1, as for torchrun: 4 are assumed, or what --agents says."
    assert said in printed(capsys, file)
    given = printed(capsys, file, "--agents", "8")
    assert "of 8 agents" in given
    assert said not in given
    assert "as for torchrun" not in printed(capsys, file, "--set", "levels={recipe: lookahead, tau: 4}")


def test_agents_in_the_middle_are_left_out(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, written(tmp_path, levels={"recipe": "distributed_lookahead", "tau": 4}), "--agents", "40")
    assert text.split("G) P:\n")[1].startswith(
        """\
             x0  ..     x39      z0
     x0  0.0125  ..  0.0125  0.0125
     ..      ..  ..      ..      ..
    x39  0.0125  ..  0.0125  0.0125
     z0     0.5  ..     0.5     0.5
    spectrum: 1, 0 (40 times)
"""
    )


INNER_AND_OUTER = [Level(Every(2), Alone(), Pull(0.5, beta=0.3)), Level(Every(4), Exact(), Pull(1.0, beta=0.7))]


@pytest.mark.parametrize(
    "levels", [lookahead(2), local_sgd(2), slowmo(2), INNER_AND_OUTER, [*lookahead(2), *slowmo(4)]]
)
def test_multiplicities_are_those_of_the_matrix(levels: list[Level]) -> None:
    """They are found from one and two agents: LAPACK does not always come to an end with many equal eigenvalues."""
    lines = [line.strip() for line in mixing_lines(levels, agents=5) if "spectrum" in line]
    names = {0.0: "0", 1.0: "1"} | {beta: f"beta = {beta}" for beta in (0.3, 0.6, 0.7)}
    steps = [2, 4] if len(levels) > 1 else [2]
    for line, step in zip(lines, steps, strict=True):
        found = theory.spectrum(theory.mixing_matrix(levels, 5, step)).real.tolist()
        counts = {name: sum(abs(value - exact) < 1e-3 for value in found) for exact, name in names.items()}
        expected = {f"{name} ({count} times)" if count > 1 else name for name, count in counts.items() if count}
        assert set(line.removeprefix("spectrum: ").split(", ")) == expected


# --- stacks of several kinds


def test_levels_that_fire_together_have_a_matrix_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = {"recipe": "multilayer_lookahead", "taus": [2, 2], "alphas": [0.5, 0.25]}
    text = printed(capsys, written(tmp_path, levels=levels))
    assert "P where levels[0] fires, new X" in text
    assert "P where levels[0] and levels[1] fire, new X" in text
    assert "y = X a = 0.125 x + 0.125 z0 + 0.75 z1" in text  # a = [A_2, (1 - alpha_1) A_2 / A_1, 1 - alpha_2]
    assert "effective learning rate: 0.125 gamma." in text
    assert "Bound (B), nested: the mean" in text


def test_a_reset_of_slow_momentum_below_leaves_no_mean_that_moves_like_sgd(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    levels = [
        {"when": {"every": {"tau": 2}}, "mix": "exact", "move": {"pull": {"alpha": 1.0, "beta": 0.5}}},
        {"when": {"every": {"tau": 4}}, "mix": "exact", "move": {"pull": {"alpha": 0.5}}, "fast_buffers": "reset"},
    ]
    text = in_one_line(printed(capsys, written(tmp_path, levels=levels)))
    assert "No sequence moves like SGD: no weighted mean of the columns outlasts every sync: levels[1] with" in text
    assert "levels[0] has no bound here: slow momentum beta=0.5 in a stack of several levels." in text


def test_values_that_change_are_those_of_the_first_round(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, lr_schedule={"name": "cosine"})
    text = printed(capsys, file, "--set", "levels.tau={piecewise: {values: [2, 6], boundaries: [4]}}")
    assert "levels[0]  every 2 fast steps, over all agents" in text
    assert "tau = 2 is that of the first round of Piecewise(values=(2, 6), boundaries=(4,))" in text
    assert "lr_schedule is left out." in text
    assert ", with schedules as in the first round; the fast optimizer alone" in in_one_line(text)


def test_a_measured_alpha_is_looked_at_from_both_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    alpha = {"optimal": {"low": 0.25, "high": 0.75}}
    text = printed(capsys, written(tmp_path, levels={"recipe": "lookahead", "tau": 4, "alpha": alpha}))
    assert "alpha is measured at each sync, Optimal(low=0.25, high=0.75): both ends are looked at" in text
    low, high = text.split("Syncs as matrices, at the ")[1:]
    assert low.startswith("low end of a measured alpha")
    assert "y = X a = 0.25 x + 0.75 z0" in low
    assert "y = X a = 0.75 x + 0.25 z0" in high


def test_other_optimizers_and_momentum_are_named_where_the_theory_leaves_them_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adam = printed(capsys, written(tmp_path, inner={"name": "Adam", "lr": 0.001}))
    assert "The theory is that of SGD without momentum as fast optimizer, and this is Adam." in adam
    momentum = printed(capsys, written(tmp_path, inner={"name": "SGD", "lr": 0.05, "momentum": 0.9}))
    assert "That is for plain SGD inside: with its momentum 0.9 nothing is proved." in momentum
    assert "SGD with momentum 0.9." in in_one_line(momentum)
    kept = theory.verdict(slowmo(4, beta=0.2), agents=4, momentum=0.9)
    assert f"learning rate x curvature = {kept.limit:.3g}; the fast optimizer alone up to 3.8" in in_one_line(momentum)


def test_the_length_of_an_epoch_may_be_unknown(capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, str(ROOT / "configs/imagenet/slowmo.yaml"), "--agents", "2")
    assert text.startswith("imagenet-slowmo: 2 agents, SGD")
    assert "divide the first term by the number K of fast steps" in in_one_line(text)


# --- bound and alpha


def test_known_constants_enter_the_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = written(tmp_path, levels={"recipe": "distributed_lookahead", "tau": 5, "alpha": 0.5})
    known = {"lr": 0.5, "smoothness": 2.0, "noise": 3.0, "gap": 4.0}
    options = [text for name, value in known.items() for text in (f"--{name}", str(value))]
    text = in_one_line(printed(capsys, file, "--agents", "2", *options))
    bound = theory.bound(lookahead_of_all(5, 0.5), agents=2, steps=13, **known)
    terms = " + ".join(map(number, (bound.optimisation, bound.noise, bound.drift)))
    assert f"With gamma = 0.5, K = 13, L = 2, sigma = 3, Delta = 4: {terms} = {number(bound.total)}." in text
    most = theory.admissible_lr(lookahead_of_all(5, 0.5), agents=2, smoothness=2.0)
    assert f"It is proved for gamma <= {number(most)} with L = 2; gamma = 0.5 is not admissible:" in text
    assert "A condition is not met there" in text
    q = 0.5 * 2 * 4  # gamma L (tau - 1)
    best = 1 - 1 / (2 * q)
    assert f"= {number(best)}, with q = gamma L (tau - 1) = 4: the least floor" in text
    shares = [(best / n + q * (1 - best * (2 - best) / n)) / (1 / n + q * (1 - 1 / n)) for n in (1, 2)]
    assert f"over that of 1: {number(shares[0])} with 1 agent, {number(shares[1])} with 2 agents;" in text


def lookahead_of_all(tau: int, alpha: float) -> list[Level]:
    return [Level(Every(tau), Exact(), Pull(alpha))]


def test_short_rounds_at_small_rates_have_no_best_alpha(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = in_one_line(printed(capsys, written(tmp_path, levels={"recipe": "lookahead", "tau": 5, "alpha": 0.5})))
    assert "= 0, with q = gamma L (tau - 1) = 0.2 for L = 1: the smaller alpha, the lower the floor" in text
    assert f"Floor of alpha = 0.5 over that of 1: {number((0.5 + 0.2 * 0.25) / 1)} with 1 agent;" in text


# --- noisy quadratics


QUADRATIC = {
    "run": {"name": "quadratic", "steps": 100},
    "task": "quadratic",
    "inner": {"name": "SGD", "lr": 0.1},
    "levels": {"recipe": "distributed_lookahead", "tau": 5, "alpha": 0.5},
}


def quadratic_file(folder: Path, **quadratic: Any) -> str:
    file = folder / "quadratic.yaml"
    file.write_text(parse_config({**QUADRATIC, "quadratic": quadratic}).to_yaml(), encoding="utf-8")
    return str(file)


def test_the_task_knows_its_constants(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Gradients a (x - c): L is the largest a, their noise a sigma, Delta = sum a start^2 / 2."""
    file = quadratic_file(tmp_path, curvature=[2.0, 0.5], noise=[1.0, 3.0], start=2.0)
    text = printed(capsys, file)
    sigma, delta = math.sqrt((2 * 1) ** 2 + (0.5 * 3) ** 2), 2.0 * 4 / 2 + 0.5 * 4 / 2
    assert f"With gamma = 0.1, K = 100, L = 2, sigma = {number(sigma)}, Delta = {number(delta)}: " in in_one_line(text)
    assert rows_of(text)["0.2"][-2:] == ["curvature", "2"]
    assert rows_of(text)["0.05"][-2:] == ["curvature", "0.5"]


def test_minima_that_differ_are_heterogeneity(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """zeta^2 = mean over agents of |a (mu_i - mean mu)|^2; the least loss lies at the mean of the minima."""
    file = quadratic_file(tmp_path, curvature=2.0, offsets=[[0.0], [1.0]], start=2.0)
    text = in_one_line(printed(capsys, file))
    bound = theory.bound(
        lookahead_of_all(5, 0.5),
        agents=4,
        lr=0.1,
        smoothness=2.0,
        noise=2.0,
        gap=2 * 1.5**2 / 2,
        steps=100,
        heterogeneity=1.0,
    )
    terms = " + ".join(map(number, (bound.optimisation, bound.noise, bound.drift)))
    assert f"L = 2, sigma = 2, Delta = 2.25, zeta = 1: {terms} = {number(bound.total)}." in text
    assert f"{number(4 / 3 * 9 * 4)} gamma^2 L^2 zeta^2" in text  # 4/3 (2 tau - 1)(tau - 1)
    assert "The agents differ; on noisy quadratics they are looked at as if they were alike." in text


def test_curvatures_that_differ_have_no_bound(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = in_one_line(printed(capsys, quadratic_file(tmp_path, curvature=[[1.0], [2.0]])))
    assert "No bound: the agents' curvatures differ, so that their gradients differ without bound." in text


def test_rates_beyond_the_limit_grow_and_are_warned_of(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, quadratic_file(tmp_path, curvature=[1.0, 30.0]))
    assert rows_of(text)["3"][3:5] == ["grows", "grows"]
    limit = closed_forms.lookahead_frontier(5, 0.5)
    said = f"lr x curvature = 3 is beyond that: use a learning rate below {number(limit / 30)}"
    assert said in in_one_line(text)


def test_curvatures_of_ones_own_take_their_place(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = printed(capsys, written(tmp_path, levels={"recipe": "lookahead", "tau": 4}), "--curvature", "5", "2")
    assert rows_of(text)["0.25"][-2:] == ["curvature", "5"]
    ratio = closed_forms.lookahead_ratio(0.25, tau=4, alpha=0.5)
    assert rows_of(text)["0.25"][-3] == number(ratio)


# --- what is refused, and the warning of validate


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--lr", "-1"], "--lr -1.0 must be above 0 and finite"),
        (["--smoothness", "0"], "--smoothness 0.0 must be above 0 and finite"),
        (["--noise", "-2"], "--noise -2.0 must be at least 0 and finite"),
        (["--gap", "nan"], "--gap nan must be at least 0 and finite"),
        (["--curvature", "1", "0"], "--curvature 0.0 must be above 0 and finite"),
        (["--agents", "0"], "--agents 0 must be at least 1"),
        (["--set", "levels.taw=3"], "levels.taw is unknown; did you mean 'tau'?"),
        (
            ["--set", "levels={recipe: lookahead}", "--agents", "2"],
            "agents=2 has no effect on levels that never average",
        ),
        (
            ["--set", "levels={recipe: snoo}", "--noise", "1", "--gap", "1"],
            "--noise, --gap would have no effect: levels[0]",
        ),
    ],
)
def test_bad_input_is_refused_before_anything_is_printed(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(capsys, written(tmp_path), *arguments)


def test_agents_of_different_kinds_come_in_multiples(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = quadratic_file(tmp_path, curvature=1.0, offsets=[[0.0], [1.0], [2.0]])
    assert "of 6 agents" in printed(capsys, file)
    assert "3 kinds of agents, which must divide agents=4" in refused(capsys, file, "--agents", "4")


def test_validate_warns_as_the_optimizer_will(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inner = {"name": "SGD", "lr": 0.05, "momentum": 0.9}
    file = written(tmp_path, inner=inner, levels={"recipe": "slowmo", "tau": 6, "beta": 0.8})
    assert main(["validate", file]) == 0
    shown = capsys.readouterr()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        DistributedLookahead(
            torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.05, momentum=0.9), slowmo(6, beta=0.8)
        )
    assert [f"warning: {warning.message}" for warning in caught] == shown.err.splitlines()
    assert in_one_line(str(caught[0].message)) in in_one_line(printed(capsys, file))
    assert main(["validate", file, "--set", "levels.beta=0.2"]) == 0
    assert not capsys.readouterr().err
