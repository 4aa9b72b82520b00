"""Metrics: one file each; functions of crystals that give a plain table."""
