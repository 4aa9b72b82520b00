"""Chemeleon2's classes as bare modules, so that a file can be unpickled for real in a test, and changed."""

from __future__ import annotations

import importlib
import pickle
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn


class _RealUnpickler(pickle.Unpickler):
    """Imports what there is, and makes a bare module of each class of that project, as `named_module` does."""

    def find_class(self, module: str, name: str) -> Any:
        if module.startswith("src."):
            return type(name, (nn.Module,), {"__module__": module, "_is_named_only": True})
        return super().find_class(module, name)


def load_for_real(path: Path) -> dict[str, Any]:
    """What torch makes of a file of these tests, in which every name is known; its modules can be called."""
    importlib.import_module("omegaconf")
    unpicklers = SimpleNamespace(Unpickler=_RealUnpickler, load=pickle.load, __name__="pickle")
    content: dict[str, Any] = torch.load(path, weights_only=False, pickle_module=unpicklers)
    return content
