"""Latentite: inorganic crystals by staged latent generation."""

__version__ = "0.1.0"
