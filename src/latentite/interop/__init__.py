"""Checkpoints of other projects: read without executing anything, converted, and written back."""

CONVERSION = 1
"""Counts changes of what conversion writes, so that a cached file of an older version is made anew."""
