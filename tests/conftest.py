"""What all tests share."""

import torch

# Sums over several threads round differently than over one: processes and simulation must use equally many. The
# models of the tests are too small to gain from more.
torch.set_num_threads(1)
