"""Objectives: pure functions of (networks, batch) that give `LossTerms`."""
