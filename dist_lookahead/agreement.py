"""Agreement: what must be the same on all agents is compared before anything is summed.

Collectives sum tensors of different sizes or orders silently, hang, or abort the process. So descriptions are
exchanged as text first, and a difference is an error on every agent which names the first difference.
"""

from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata

import torch
from torch import Tensor
from torch.optim import Optimizer

from dist_lookahead.comm.communicator import Communicator, Pending, Work
from dist_lookahead.comm.process_group import ProcessGroupCommunicator
from dist_lookahead.mail import who_says_what
from dist_lookahead.mesh import Mesh
from dist_lookahead.sharded import shard_axis

LONGEST = 2**24  # bytes of a text: enough for a line about each of a hundred thousand parameters


SAME = "Build the same model, optimizer and levels in the same order on every agent"


class AgentsDiffer(ValueError):
    """Agents do not have the same of what must be the same; raised on every one of them."""


def exchange(communicator: Communicator, text: str, device: torch.device) -> Generator[Work, None, list[str]]:
    """Collect a text from every agent, in the order of ranks.

    Raises:
        AgentsDiffer: on every agent where one says that it sends more than 16 MiB, before room is made for it.
    """
    own = torch.frombuffer(bytearray(text.encode()), dtype=torch.uint8).to(device) if text else _nothing(device)
    lengths = torch.zeros(communicator.size, dtype=torch.int64, device=device)
    yield communicator.all_gather(lengths, torch.tensor([own.numel()], device=device))
    said = lengths.tolist()
    if not all(0 <= length <= LONGEST for length in said):
        raise AgentsDiffer(
            f"agents want to send texts of {who_says_what(said)} bytes, at most {LONGEST} are allowed: run the same "
            "program and versions on every agent; none has come to this point before the others"
        )
    longest = max(said)
    padded = torch.zeros(longest, dtype=torch.uint8, device=device)
    padded[: own.numel()] = own
    texts = torch.zeros(communicator.size * longest, dtype=torch.uint8, device=device)
    yield communicator.all_gather(texts, padded)
    rows = texts.view(communicator.size, longest).cpu()
    # Bytes that are no text stay visible, and different, in what is compared or shown.
    return [bytes(row[:n].tolist()).decode(errors="backslashreplace") for row, n in zip(rows, said, strict=True)]


def versions() -> str:
    """Return the versions on which the meaning of what agents send, and its last bit, depend."""
    try:
        own = metadata.version("dist-lookahead")
    except metadata.PackageNotFoundError:
        own = "not installed"
    return f"dist-lookahead {own}, torch {torch.__version__}"


def described(levels: Sequence[object]) -> list[str]:
    """Return a line for each level, which all agents must have alike."""
    return [f"levels[{index}] = {level}" for index, level in enumerate(levels)]


def described_optimizer(inner: Optimizer) -> str:
    """Return what of the fast optimizer all agents must have alike: not its values, such as a learning rate.

    Example:
        >>> described_optimizer(torch.optim.Rprop([torch.nn.Parameter(torch.zeros(1))], lr=0.1))[:58]
        'fast optimizer Rprop(capturable, differentiable, etas, for'
    """
    split = shard_axis(parameter for group in inner.param_groups for parameter in group["params"])
    # Groups themselves may have more keys here than there: what a scheduler of learning rates leaves in them.
    options = ", ".join(sorted(inner.defaults))
    parts = f"split along {split[0]!r}" if split else "whole"
    return f"fast optimizer {type(inner).__name__}({options}) of {len(inner.param_groups)} groups, parameters {parts}"


def described_training(mesh: Mesh, levels: Sequence[object], inner: Optimizer) -> list[str]:
    """Return the lines that all processes compare before any of them makes a group along an axis of the mesh."""
    return [versions(), str(mesh), *described(levels), described_optimizer(inner)]


@contextmanager
def refused_together(communicator: Communicator) -> Iterator[None]:
    """Around what ends with `require_same`: an error before it reaches the other agents in place of this one's lines.

    They would wait for them until their timeout. Simulated agents have no need of it: an error ends their process.

    Args:
        communicator: that `require_same` will use.
    """
    try:
        yield
    except AgentsDiffer:
        raise
    except ValueError as error:
        if isinstance(communicator, ProcessGroupCommunicator):
            told = [f"the error {str(error)!r}"]
            communicator.run(require_same(communicator, told, torch.device(communicator.device)))
        raise


def require_same(communicator: Communicator, lines: Sequence[str], device: torch.device, advice: str = "") -> Pending:
    """Raise on every agent unless all have the same lines.

    Args:
        communicator: this agent's end.
        lines: what must be the same.
        device: where the backend works.
        advice: what to change; to build the same on every agent, by default.

    Raises:
        AgentsDiffer: with the first line that differs, and what each agent says.
    """
    if communicator.size == 1:
        return
    texts = yield from exchange(communicator, "\n".join(lines), device)
    if len(set(texts)) == 1:
        return
    columns = [text.split("\n") for text in texts]
    depth = max(map(len, columns))
    for row in range(depth):
        values = [column[row] if row < len(column) else "nothing" for column in columns]
        if len(set(values)) > 1:
            raise AgentsDiffer(f"agents differ: {who_says_what(values)}. {advice or SAME}")


def _nothing(device: torch.device) -> Tensor:
    return torch.zeros(0, dtype=torch.uint8, device=device)
