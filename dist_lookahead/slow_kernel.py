"""The slow step in one pass over a GPU's memory: a Triton kernel that rounds as the plain operations do.

Plain operations pass over a GPU's memory up to five times: chunks that fit its cache are not worth their launches. In
the kernel products are summed fused, as in torch's own kernels, and the mean is a true quotient.
"""

import triton  # pyright: ignore[reportMissingImports] - not there where torch is for CPUs only
import triton.language as tl  # pyright: ignore[reportMissingImports] - likewise
from torch import Tensor

BLOCK = 2048  # elements of one program: loads of 16 bytes for each thread, several under way
LANES = 16  # elements: what begins and ends at multiples of it is read in the widest loads


def slow_step(
    fast: Tensor,
    slow: Tensor | None,
    momentum: Tensor | None,
    *,
    agents: float,
    alpha: float,
    beta: float,
    decay: float,
    nesterov: bool,
) -> None:
    """Apply a move in place, like `move.slow_step`.

    Args:
        fast: flat (D,) float32, the sum over the agents; overwritten with the new weights.
        slow: flat (D,) float32, z; None for `Copy`.
        momentum: flat (D,) float32, v; None without slow momentum.
        agents: number of agents in the sum.
        alpha: slow step size.
        beta: slow momentum.
        decay: factor of v, beta times the change of the fast learning rate.
        nesterov: the rule z <- z + alpha (delta + beta v).
    """
    even = fast.numel() // LANES * LANES
    for part in (slice(0, even), slice(even, fast.numel())):
        own = fast[part]
        if own.numel():
            _kernel[(triton.cdiv(own.numel(), BLOCK),)](
                own,
                own if slow is None else slow[part],
                own if momentum is None else momentum[part],
                own.numel(),
                float(agents),
                float(alpha),
                float(beta),
                float(decay),
                HAS_SLOW=tl.constexpr(slow is not None),
                HAS_MOMENTUM=tl.constexpr(momentum is not None),
                IS_MEAN=tl.constexpr(alpha == 1.0 and beta == 0.0),
                NESTEROV=tl.constexpr(nesterov),
                BLOCK=tl.constexpr(BLOCK),
            )


@triton.jit
def _kernel(
    fast,
    slow,
    momentum,
    length,
    agents,
    alpha,
    beta,
    decay,
    HAS_SLOW: tl.constexpr,
    HAS_MOMENTUM: tl.constexpr,
    IS_MEAN: tl.constexpr,
    NESTEROV: tl.constexpr,
    BLOCK: tl.constexpr,
):
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < length
    x = tl.div_rn(tl.load(fast + place, inside), agents)
    if HAS_SLOW:
        z = tl.load(slow + place, inside)
        delta = x - z
        if IS_MEAN:
            if HAS_MOMENTUM:
                tl.store(momentum + place, delta, inside)
            z = x
        elif HAS_MOMENTUM:
            v = tl.fma(decay, tl.load(momentum + place, inside), delta)
            tl.store(momentum + place, v, inside)
            z = tl.fma(alpha, tl.fma(beta, v, delta) if NESTEROV else v, z)
        else:  # torch's lerp: from the nearer end
            z = tl.where(alpha < 0.5, tl.fma(alpha, delta, z), tl.fma(-delta, 1.0 - alpha, x))
        tl.store(slow + place, z, inside)
        x = z
    tl.store(fast + place, x, inside)
