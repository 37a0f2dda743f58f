"""A warning before a known instability: slow momentum over a fast momentum that is kept through short rounds."""

from collections.abc import Iterable, Sequence

from torch.optim import Optimizer

from dist_lookahead.level import Level

# Least tau (1 - m) for slow momentum from beta on: with fast momentum m, 1 / (1 - m) steps is its horizon.
NEEDED = ((0.8, 2.0), (0.5, 1.0))


def instabilities(levels: Sequence[Level], inner: Optimizer) -> Iterable[str]:
    """Yield a sentence for each level that is unstable on plain quadratics at small learning rates.

    With heavy-ball momentum m in the fast optimizer, kept or averaged at the sync, and slow momentum beta, the
    recursion of the mean on a quadratic has an eigenvalue outside the unit circle for nearly every learning rate
    unless tau (1 - m) > 1 for beta >= 0.5, or tau (1 - m) >= 2 for beta >= 0.8. A reset removes the coupling.
    """
    momentum = max((float(group.get("momentum") or 0.0) for group in inner.param_groups), default=0.0)
    for index, level in enumerate(levels):
        beta, tau = getattr(level.move, "beta", 0.0), level.when.tau
        if not isinstance(beta, float) or not isinstance(tau, int) or level.fast_buffers == "reset":
            continue
        needed = next((least for bound, least in NEEDED if beta >= bound), 0.0)
        if momentum == 0.0 or tau * (1 - momentum) >= needed:
            continue
        yield (
            f"levels[{index}]: slow momentum beta={beta} over fast momentum {momentum} kept through tau={tau} steps "
            f"is unstable on quadratics at small learning rates already: tau (1 - momentum) = "
            f"{tau * (1 - momentum):.2g}, needed {needed:g}. Use fast_buffers='reset', or "
            f"tau >= {round(needed / (1 - momentum) + 0.4999)}, or beta below 0.5"
        )
