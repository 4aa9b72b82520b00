"""Metrics: functions of crystals that give plain numbers, one file for each kind."""
