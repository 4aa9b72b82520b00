"""Latentite: inorganic crystals by staged latent generation."""

__version__ = "0.1.0"

_PUBLIC = {"evaluate": "latentite.evaluation.run", "generate": "latentite.generation"}
"""Functions of the package itself, and the module of each: imported when first asked for."""


def __getattr__(name: str) -> object:
    if name not in _PUBLIC:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(_PUBLIC[name]), name)
