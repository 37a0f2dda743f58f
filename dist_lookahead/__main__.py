"""`python -m dist_lookahead`: the command line."""

import sys

from dist_lookahead.train.command import main

if __name__ == "__main__":
    sys.exit(main())
