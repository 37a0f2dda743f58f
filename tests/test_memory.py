"""What recipes cost in memory: as many copies of the model as the design says, also at the height of a sync."""

from typing import Any

import pytest
import torch
from processes import run_processes

from benchmarks import memory
from benchmarks.footprint import Footprint
from dist_lookahead import same_weights

ELEMENTS = 16_000_000  # 64 MB: the kernel's count of pages, and what gloo passes on at a time, are a few of them
CPU = torch.device("cpu")
ROOM = 0.15  # copies


def rows(names: list[str]) -> list[dict[str, Any]]:
    torch.set_num_threads(1)
    return [dict(zip(memory.COLUMNS, memory.memory_row(name, ELEMENTS, CPU), strict=True)) for name in names]


@pytest.mark.timeout(120)
def test_recipes_cost_what_the_design_says() -> None:
    """Breaks with any whole copy of the weights that is made on the way, and with slow state that nobody needs.

    A neighbour's weights are one, and so are what gloo sums beside its input, and a code with the means of a part.
    """
    allowed = {"local_sgd": 0, "slowmo": 0, "polyak": 0, "slowmo, sharded": 1, "dpsgd": 1, "slowmo, 8 bits": 1.5}
    for row in run_processes(rows, 2, list(allowed), timeout=100)[0]:
        assert abs(row["kept"] - row["design"]) < ROOM, row
        assert row["excess"] < allowed[row["recipe"]] + ROOM, row


def test_a_checksum_is_that_of_the_whole_and_makes_no_copy_of_it() -> None:
    bits = torch.randint(-(2**31), 2**31 - 1, (4_000_003,), dtype=torch.int32)
    same_weights._checksum(bits.view(torch.float32))  # loads the code
    footprint = Footprint(CPU)
    with footprint.phase("sum"):
        found = same_weights._checksum(bits.view(torch.float32))
    assert found == bits.sum(dtype=torch.int64)
    assert footprint.usage["sum"].peak < bits.numel() * bits.element_size() / 2
