"""What a run itself has measured says of its tau: the planner's rule on waiting and training as they were."""

import math

EXPOSED = 0.05  # share of wall time that may be waiting, where nobody has asked for another


def stretch(seconds: float, exposed_seconds: float, target: float = EXPOSED) -> int:
    """Return how many times longer rounds must be, a power of two, for waiting to be below a share of wall time.

        f = the least power of two with exposed / (exposed + f (seconds - exposed)) <= target

    An average is waited for as long as before, and the other time of a round grows with it.

    Args:
        seconds: of training.
        exposed_seconds: of them, in which agents waited for collectives, below `seconds`.
        target: the share, above 0 and below 1.

    Example:
        >>> stretch(10.0, 5.0), stretch(10.0, 0.4)
        (32, 1)
    """
    needed = exposed_seconds * (1 - target) / (target * (seconds - exposed_seconds))
    return 2 ** max(math.ceil(math.log2(needed)), 0) if needed > 1 else 1


def exposed_after(seconds: float, exposed_seconds: float, times: float) -> float:
    """Return the share of waiting in rounds that are so many times longer.

    Example:
        >>> exposed_after(10.0, 5.0, times=4)
        0.2
    """
    return exposed_seconds / (exposed_seconds + times * (seconds - exposed_seconds))
