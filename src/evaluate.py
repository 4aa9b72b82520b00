"""Evaluate structures: `python src/evaluate.py SOURCE --reference NAME_OR_FILE --out DIR`.

The same as `latentite evaluate`; `--help` and `docs/evaluate.md` say more.
"""

import sys

from latentite.cli import main

if __name__ == "__main__":
    sys.exit(main(["evaluate", *sys.argv[1:]]))
