"""`python -m latentite`: the `latentite` command where no script is installed."""

import sys

from latentite.cli import main

if __name__ == "__main__":
    sys.exit(main())
