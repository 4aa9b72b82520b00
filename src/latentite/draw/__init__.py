"""Figures as files: unit cells, charts, curves of trainings."""
