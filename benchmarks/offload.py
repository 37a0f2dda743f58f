"""The slow step with its state in host memory, against the link between host and GPU: needs a GPU.

Slow weights, and slow momentum where there is one, come to the GPU and go back: 4 bytes per element and array each way.
The floor is the time that this many bytes take from page-locked memory and back, both ways at once.
"""

import argparse
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import Tensor

from benchmarks import measure, picture, report
from dist_lookahead import Pull, move, offload

RULES = {"Pull(0.5)": (1, Pull(0.5)), "Pull(1, 0.6)": (2, Pull(1.0, 0.6))}  # arrays that travel, rule
ABOUT = (
    "Milliseconds of the slow step (float32, one agent), medians of interleaved rounds. on device: slow state on the "
    "GPU. on host: in host memory. link: the same bytes to the GPU and back, both ways at once. ratio: on host / link. "
    "saved: bytes of GPU memory per element; windows: MB that stay on the GPU for a while."
)
COLUMNS = ("rule", "elements", "on device", "on host", "link", "link GB/s", "ratio", "saved", "windows")


class BothWays:
    """A plain copy from host to GPU beside one back.

    Args:
        elements: of each.
        device: the GPU.
    """

    def __init__(self, elements: int, device: torch.device) -> None:
        self._device = device
        self._here = [torch.ones(elements, device=device) for _ in range(2)]
        self._home = [torch.ones(elements).pin_memory() for _ in range(2)]
        self._streams = [torch.cuda.Stream(device) for _ in range(2)]

    def copy(self) -> None:
        """Start both, and wait for them."""
        current = torch.cuda.current_stream(self._device)
        pairs = ((self._here[0], self._home[0]), (self._home[1], self._here[1]))
        for stream, (target, source) in zip(self._streams, pairs, strict=True):
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                target.copy_(source, non_blocking=True)
        for stream in self._streams:
            current.wait_stream(stream)


def offload_row(name: str, elements: int, rounds: int, device: torch.device) -> list[report.Cell]:
    """Measure one rule at one size."""
    arrays, rule = RULES[name]
    alpha, beta = rule.coefficients(0)
    here: list[Tensor | None] = [torch.ones(elements, device=device), torch.zeros(elements, device=device)]
    here = [*here[:arrays], *[None] * (2 - arrays)]
    home = [None if kept is None else offload.on_host(kept) for kept in here]
    fast = torch.ones(elements, device=device)

    def step(x: Tensor, z: Tensor | None, v: Tensor | None) -> None:
        move.slow_step(rule, x, z, v, agents=1, alpha=alpha, beta=beta)

    link = BothWays(arrays * elements, device)
    # The slow step waits for the host's copies at its end, so that all are timed by the wall.
    cases = {
        "link": measure.Case(run=link.copy),
        "on device": measure.Case(run=lambda: offload.through_device(step, fast, *here)),
        "on host": measure.Case(run=lambda: offload.through_device(step, fast, *home)),
    }
    times = measure.interleave(cases, rounds, device, wall=True)
    device_time, host_time, link_time = (times[case].median for case in ("on device", "on host", "link"))
    speed = 2 * 4 * arrays * elements / link_time / 1e9
    windows = 4 * offload.SLOTS * arrays * min(offload.WINDOW, elements) / 1e6
    counts = [name, f"{elements:,}", device_time * 1e3, host_time * 1e3, link_time * 1e3, speed]
    return [*counts, host_time / link_time, 4 * arrays, windows]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every rule at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--elements", type=int, nargs="+", default=[10_000_000, 100_000_000], help="parameters")
    report.add_options(parser, rounds=15)
    options = parser.parse_args(arguments)
    if not torch.cuda.is_available():
        parser.exit(1, "benchmarks.offload needs a CUDA device, and torch sees none\n")
    before, rows = report.load_average(), []
    cases = [(elements, rule) for elements in options.elements for rule in RULES]
    for elements, rule in track(cases, "offload", console=Console(stderr=True)):
        rows.append(offload_row(rule, elements, options.rounds, torch.device("cuda")))
    load = before, report.load_average()
    drawn = picture.Bars(panels=[["on device", "on host", "link"]], by=["rule", "elements"])
    table = report.Report(name="offload", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=drawn)
    report.publish(table, options)


if __name__ == "__main__":
    main()
