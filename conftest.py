"""What pytest leaves out where it cannot be imported."""

import importlib.util

# A kernel in Triton, which comes with torch for GPUs only. Its tests skip themselves.
collect_ignore = [] if importlib.util.find_spec("triton") else ["dist_lookahead/slow_kernel.py"]
