"""Measuring: cases in turn, and the plain copy that gives the floor of a pass over memory."""

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

import torch
from torch import Tensor

AHEAD = 4_000_000  # cycles of the device, about 2 ms
WARM_UP = 3  # first rounds, not counted: memory is mapped, thread pools and connections start


def nothing() -> None:
    """Prepare nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Case:
    """What is timed, and what happens before it outside the clock.

    Args:
        run: timed.
        prepare: called before each `run`, not timed.
    """

    run: Callable[[], object]
    prepare: Callable[[], object] = nothing


class Times:
    """Seconds of one case, one number per round."""

    def __init__(self, seconds: Iterable[float]) -> None:
        self.seconds = list(seconds)

    @property
    def median(self) -> float:
        """Middle of the sorted times."""
        return median(self.seconds)

    @property
    def best(self) -> float:
        """Fastest round: what is left when nobody else uses the machine."""
        return min(self.seconds)


def interleave(cases: Mapping[str, Case], rounds: int, device: torch.device, *, wall: bool = False) -> dict[str, Times]:
    """Time all cases in turn, `rounds` times over, so that a busy machine slows all of them alike.

    Args:
        cases: by name.
        rounds: how often each is timed; some warm-up rounds come first.
        device: where the work happens; on CUDA, events take the time, unless the work waits for the device itself.
        wall: whether the host's clock takes the time on CUDA too, from an idle device to an idle device.
    """
    clock = _wall if device.type == "cpu" else _idle_to_idle if wall else _events
    seconds: dict[str, list[float]] = {name: [] for name in cases}
    for index in range(-WARM_UP, rounds):
        for name, case in cases.items():
            case.prepare()
            duration = clock(case.run)
            if index >= 0:
                seconds[name].append(duration)
    return {name: Times(durations) for name, durations in seconds.items()}


class PlainCopy:
    """A copy between two flat float32 tensors that together are as large as what it is compared with.

    Args:
        arrays: number of float32 arrays that the other code reads and writes.
        elements: their length.
        device: where they are.
    """

    def __init__(self, arrays: int, elements: int, device: torch.device) -> None:
        length = max(arrays * elements // 2, 1)
        self._source = torch.ones(length, device=device)
        self._target = torch.ones(length, device=device)
        self.moved = 2 * length * self._source.element_size()
        self.case = Case(run=self._copy)

    def _copy(self) -> Tensor:
        return self._target.copy_(self._source)

    def floor(self, traffic: int, seconds: float) -> float:
        """Return the seconds that `traffic` bytes take at the speed of this copy, which took `seconds`."""
        return traffic / self.moved * seconds


def _wall(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def _idle_to_idle(run: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def _events(run: Callable[[], object]) -> float:
    """The time on the device: it is kept busy meanwhile until all is queued, as it is in a training."""
    torch.cuda.synchronize()
    torch.cuda._sleep(AHEAD)
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    run()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop) / 1000
