"""What all tests share."""

import pytest
import torch

# Sums over several threads round differently than over one: processes and simulation must use equally many. The
# models of the tests are too small to gain from more.
torch.set_num_threads(1)

FIRST = "test_theory_mixing.py"  # that the code is the product of matrices is what all else rests on


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run the tests that tie code and mathematics before all others."""
    items.sort(key=lambda item: item.path.name != FIRST)
