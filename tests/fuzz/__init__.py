"""A fuzzer of everything that comes in: damaged and unusual files must be read rightly or refused, never guessed.

    PYTHONPATH=tests python -m fuzz --count 10000 --seed 0 --out findings

Every input is a `Case`, a function of (seed, format, index): files, and what is known of their right reading.
`child.py` gives it to the product's own commands and `oracles.py` judges what came out, in a process of its own
under `guard.py`; `parent.py` feeds such a process and notices when it hangs or dies. CONTRIBUTING.md says how it is
used.
"""
