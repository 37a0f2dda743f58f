"""A local step, one that does not sync, against the inner optimizer's own step.

Both optimizers have parameters of their own, of the same shapes; the step of one follows the step of the other.
"""

import argparse
import itertools
from collections.abc import Sequence

import torch
from rich.console import Console
from rich.progress import track
from torch import nn
from torch.optim import Optimizer

from benchmarks import measure, picture, report
from dist_lookahead import DistributedLookahead, slowmo

NEVER = 10**9  # steps until the first sync
MOST = 20_000_000  # parameters altogether: larger products of tensors and elements are left out
BATCH_SECONDS = 0.001  # steps are timed in batches of about this length: one alone may be too short for the clock
ABOUT = (
    "Microseconds of one step, medians of interleaved rounds. inner: torch's optimizer alone; wrapped: the same inside "
    "DistributedLookahead with slowmo, between two syncs. ratio: wrapped / inner; at best: by the fastest rounds."
)
COLUMNS = ("optimizer", "tensors", "elements each", "inner", "wrapped", "difference", "ratio", "at best")
PICTURE = picture.Lines(x="tensors", panels=[["ratio"]], by=["optimizer", "elements each"])


def build(name: str, tensors: int, elements: int, device: torch.device) -> Optimizer:
    """Return an optimizer of parameters that have gradients."""
    parameters = [nn.Parameter(torch.ones(elements, device=device)) for _ in range(tensors)]
    for parameter in parameters:
        parameter.grad = torch.full_like(parameter, 0.1)
    if name == "AdamW":
        return torch.optim.AdamW(parameters, lr=1e-4)
    return torch.optim.SGD(parameters, lr=1e-4, momentum=0.9)


def local_step_row(name: str, tensors: int, elements: int, rounds: int, device: torch.device) -> list[report.Cell]:
    """Measure one optimizer at one size."""
    inner = build(name, tensors, elements, device)
    wrapped = DistributedLookahead(build(name, tensors, elements, device), slowmo(tau=NEVER, fast_buffers="reset"))
    batch = _batch(inner, device)
    steps = {"inner": inner, "wrapped": wrapped}
    cases = {case: measure.Case(run=lambda o=optimizer: _steps(o, batch)) for case, optimizer in steps.items()}
    times = measure.interleave(cases, rounds, device, wall=True)
    alone, inside = (times[case].median / batch * 1e6 for case in ("inner", "wrapped"))
    best = times["wrapped"].best / times["inner"].best
    return [name, tensors, f"{elements:,}", alone, inside, inside - alone, inside / alone, best]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure every optimizer at every size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tensors", type=int, nargs="+", default=[1, 10, 100, 1000], help="numbers of parameters")
    parser.add_argument("--elements", type=int, nargs="+", default=[10, 1000, 100_000], help="lengths of each")
    parser.add_argument("--threads", type=int, default=1, help="on CPU (%(default)s)")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    report.add_options(parser, rounds=101)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    sizes = [(t, e) for t, e in itertools.product(options.tensors, options.elements) if t * e <= MOST]
    before, rows = report.load_average(), []
    cases = list(itertools.product(("SGD", "AdamW"), sizes))
    for name, (tensors, elements) in track(cases, "local step", console=Console(stderr=True)):
        rows.append(local_step_row(name, tensors, elements, options.rounds, torch.device(options.device)))
    load = before, report.load_average()
    table = report.Report(name="local_step", about=ABOUT, columns=COLUMNS, rows=rows, load=load, picture=PICTURE)
    report.publish(table, options)


def _steps(optimizer: Optimizer, batch: int) -> None:
    for _ in range(batch):
        optimizer.step()


def _batch(optimizer: Optimizer, device: torch.device) -> int:
    """Return how many steps fill a batch; also the optimizer's own first steps, which allocate its state."""
    step = {"step": measure.Case(run=optimizer.step)}
    return max(1, round(BATCH_SECONDS / measure.interleave(step, 5, device)["step"].best))


if __name__ == "__main__":
    main()
