"""Sample crystals: `python src/sample.py [--ckpt CKPT] --out DIR [...]`, the same as `latentite sample`."""

import sys

from latentite.cli import main

if __name__ == "__main__":
    sys.exit(main(["sample", *sys.argv[1:]]))
