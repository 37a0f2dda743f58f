"""The slow step as a Triton kernel: interpreted here, on a GPU compiled and compared to the last bit."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from dist_lookahead import Copy, Pull, move, offload
from dist_lookahead.move import Move

RULES = {
    "copy": Copy(),
    "near": Pull(0.3),
    "far": Pull(0.8),
    "mean": Pull(1.0),
    "momentum": Pull(1.0, 0.6),
    "nesterov": Pull(0.7, 0.9, nesterov=True),
}
each_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)


def tensors(rule: Move, length: int, device: str) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Random x, z and v, the latter two where the rule has them."""
    generator = torch.Generator().manual_seed(length)
    x, z, v = (torch.randn(length, generator=generator).to(device) for _ in range(3))
    return x, z if rule.keeps_slow_weights else None, v if rule.keeps_momentum else None


def compare(rule: Move, length: int, agents: float, device: str, *, beta: float | None = None) -> list[float]:
    """Return the greatest differences between the kernel and plain operations."""
    from dist_lookahead.slow_kernel import slow_step

    alpha, own = rule.coefficients(0)
    beta = own if beta is None else beta
    one, other = tensors(rule, length, device), tensors(rule, length, device)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(move, "kernel_for", lambda fast: None)
        move.slow_step(rule, *one, agents=agents, alpha=alpha, beta=beta, ratio=0.5)
    nesterov = isinstance(rule, Pull) and rule.nesterov
    slow_step(*other, agents=agents, alpha=alpha, beta=beta, decay=beta * 0.5, nesterov=nesterov)
    pairs = zip(one, other, strict=True)
    return [float((a - b).abs().max()) for a, b in pairs if a is not None and b is not None]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="torch is here without Triton")
def test_the_kernel_does_what_plain_operations_do() -> None:
    """Interpreted, where sums are not fused, so that last bits differ; in a process that has not loaded Triton yet."""
    program = (
        "import test_slow_kernel as t\n"
        "for rule in t.RULES.values():\n"
        "    for length in (5, 16, 5003):\n"
        "        differences = t.compare(rule, length, 3, 'cpu')\n"
        "        assert max(differences) < 2e-6, (rule, length, differences)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=Path(__file__).parent,
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_rule
@pytest.mark.parametrize("length", [1, 16, 4099, 3_000_001])
@pytest.mark.parametrize("agents", [1, 2, 3])
def test_on_a_gpu_the_kernel_has_the_same_bits(rule: Move, length: int, agents: int) -> None:
    """Then it makes no difference which of the two a GPU's agents use, all of them the same one."""
    assert not any(compare(rule, length, agents, "cuda"))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@each_rule
def test_slow_state_on_the_host_moves_as_on_the_device(rule: Move, monkeypatch: pytest.MonkeyPatch) -> None:
    """Windows that come, are worked on and go at the same time must not overtake each other."""
    monkeypatch.setattr(offload, "WINDOW", 1000)
    alpha, beta = rule.coefficients(0)
    here, away = tensors(rule, 10_123, "cuda"), tensors(rule, 10_123, "cuda")
    away = (away[0], *(None if kept is None else offload.on_host(kept) for kept in away[1:]))

    def step(x: Tensor, z: Tensor | None, v: Tensor | None) -> None:
        move.slow_step(rule, x, z, v, agents=2, alpha=alpha, beta=beta)

    for _ in range(5):
        offload.through_device(step, *here)
        offload.through_device(step, *away)
        for one, other in zip(here, away, strict=True):
            assert one is None or other is None or torch.equal(one.cpu(), other.cpu())
