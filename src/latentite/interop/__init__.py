"""Checkpoints of other projects: read without executing anything, converted, and written back.

Read `pickled.py` first, then `chemeleon2.py`.
"""
