"""The command line, for tests that cannot wait: a node or an agent without a sign of life is lost soon.

python -m tests.impatient launch .. -m tests.impatient train FILE
"""

import sys
from functools import partial

from dist_lookahead.survivors import Survivors, launcher
from dist_lookahead.train.command import main

if __name__ == "__main__":
    launcher.SILENCE_SECONDS = 1.0
    Survivors.from_environment = partial(Survivors.from_environment, silence=2.0)  # a sign comes each second
    sys.exit(main(sys.argv[1:]))
