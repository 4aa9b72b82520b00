"""Checkpoints of other projects: read without executing anything, converted, and written back.

Read `pickled.py` first, then `chemeleon2.py`.
"""

CONVERSION = 1
"""Counts changes of what conversion writes, so that a cached file of an older version is made anew."""
