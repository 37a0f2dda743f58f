"""What is said of agents that others wait for: who they are, where, and what they were doing last."""

from collections.abc import Sequence

from dist_lookahead.comm.heartbeat import SILENT_SECONDS, Seen


def first_to_tell(rank: int, seen: Sequence[Seen], patience: float) -> bool:
    """Return whether no agent of a lower rank has waited about as long, and will tell.

    One that waits for a moment, as for its neighbours on its own node, does not: it may do so again and again.

    Args:
        rank: of the agent that would tell.
        seen: all agents, by rank.
        patience: seconds of waiting after which agents tell; half of it is about as long.

    Example:
        >>> from dist_lookahead.comm.heartbeat import Heartbeat
        >>> waiting = Seen(Heartbeat(9, "node0", 41, 18, "waiting for others", True, 30.0), 0.0)
        >>> first_to_tell(1, [waiting, waiting], 30.0)
        False
    """
    return not any(other.waits and other.seconds >= patience / 2 for other in seen[:rank])


def one(rank: int, seen: Seen) -> str:
    """Say where an agent is.

    Example:
        >>> from dist_lookahead.comm.heartbeat import Heartbeat
        >>> one(1, Seen(Heartbeat(3, "node1", 42, 17, "computing", False, 31.0), 0.4))
        'agent 1 (host node1, process 42) is computing after fast step 17, for 31 s'
        >>> one(1, Seen(Heartbeat(3, "node1", 42, 17, "computing", False, 0.2), 29.0))
        'agent 1 (host node1, process 42) has given no sign of life for 29 s; it was computing after fast step 17'
    """
    beat = seen.beat
    if beat is None:
        return f"agent {rank} has never given a sign of life"
    who = f"agent {rank} (host {beat.host}, process {beat.process})"
    if seen.age is None:
        return f"{who} was {beat.doing} after fast step {beat.step} when it gave its last sign of life"
    if seen.age >= SILENT_SECONDS:
        silent = f"{who} has given no sign of life for {seen.age:.0f} s"
        return f"{silent}; it was {beat.doing} after fast step {beat.step}"
    return f"{who} is {beat.doing} after fast step {beat.step}, for {seen.seconds:.0f} s"


def everybody(seen: Sequence[Seen]) -> str:
    """Say where all agents are: those that wait for others together, and each of the others.

    Example:
        >>> from dist_lookahead.comm.heartbeat import Heartbeat
        >>> waiting = Seen(Heartbeat(9, "node0", 41, 18, "waiting for others", True, 30.0), 0.0)
        >>> computing = Seen(Heartbeat(3, "node1", 42, 17, "computing", False, 31.0), 0.0)
        >>> everybody([waiting, computing, waiting]).split("; ")[0]
        'agents [0, 2] wait for others, for 30 s'
    """
    waiting = {rank: said.seconds for rank, said in enumerate(seen) if said.waits}
    together = [f"agents {list(waiting)} wait for others, for {max(waiting.values()):.0f} s"] if waiting else []
    return "; ".join([*together, *(one(rank, said) for rank, said in enumerate(seen) if rank not in waiting)])
