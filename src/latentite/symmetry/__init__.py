"""Symmetry: the Wyckoff positions of all space groups, and crystals described by their orbits."""
