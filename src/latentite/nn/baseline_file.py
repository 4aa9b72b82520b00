"""Element baselines as YAML (`sae.yaml`): values by symbol, unit, extent, and where they come from.

Such a file:

    format: 1
    reference: PBE
    provenance: {source: ..., sha256: ..., ...}
    targets:
      energy:
        extent: total
        unit: eV
        fidelities:
          PBE: {elements: {H: -3.39, O: -4.94}, inherited: [], num_rows: 812, num_trimmed: 32, residual_mae: 0.21, ...}
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from latentite.base.files import replacing
from latentite.elements import ATOMIC_NUMBER, SYMBOLS
from latentite.nn.baseline_fit import BaselineFit
from latentite.nn.baselines import ElementBaselines, Extent

FORMAT = 1


def write_baselines(
    path: str | Path,
    baselines: ElementBaselines,
    fits: Sequence[BaselineFit],
    *,
    units: Mapping[str, str],
    reference: str,
    provenance: Mapping[str, Any],
) -> None:
    """Write the table as YAML, atomically.

    Args:
        path: the file.
        baselines: the table; targets of extent `none` are left out.
        fits: how each fidelity and target was fitted.
        units: of the targets.
        reference: name of the reference fidelity.
        provenance: plain values: source, hash, settings of the fit.
    """
    import yaml

    targets = {
        target: {
            "extent": baselines.extents[column].value,
            "unit": units[target],
            "fidelities": {
                fidelity: {"elements": _by_symbol(baselines, position, column)}
                | _said(fits, fidelity, target)
                for position, fidelity in enumerate(baselines.fidelities)
            },
        }
        for column, target in enumerate(baselines.targets)
        if baselines.extents[column] is not Extent.NONE
    }
    content = {
        "format": FORMAT,
        "reference": reference,
        "provenance": dict(provenance),
        "targets": targets,
    }
    text = yaml.safe_dump(content, sort_keys=False, allow_unicode=True)
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def read_baselines(path: str | Path) -> ElementBaselines:
    """The table of a file; elements and fidelities that it does not name have none.

    Raises:
        FileNotFoundError: when there is no such file.
        ValueError: naming what in it is not as `write_baselines` writes it.
    """
    import yaml

    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(
            f"baselines must be an existing file, got {path}; `latentite baseline fit` makes one"
        )
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} must be YAML, got a text that is not: {error}") from error
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(f"{path} must be baselines of format {FORMAT}, written by `latentite baseline fit`")
    try:
        return _table(content["targets"])
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise ValueError(f"{path} must be as `latentite baseline fit` writes it, got {error!r}") from error


def _table(targets: dict[str, Any]) -> ElementBaselines:
    fidelities = list(dict.fromkeys(name for target in targets.values() for name in target["fidelities"]))
    extents = [target["extent"] for target in targets.values()]
    baselines = ElementBaselines(fidelities=fidelities, targets=list(targets), extents=extents)
    for column, target in enumerate(targets.values()):
        for fidelity, table in target["fidelities"].items():
            for symbol, value in table["elements"].items():
                if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
                    raise ValueError(f"{symbol} of {fidelity} must be a finite number, got {value!r}")
                baselines.values[fidelities.index(fidelity), column, ATOMIC_NUMBER[symbol]] = value
    return baselines


def _by_symbol(baselines: ElementBaselines, position: int, column: int) -> dict[str, float]:
    values = enumerate(baselines.values[position, column].tolist())
    return {SYMBOLS[number - 1]: value for number, value in values if not math.isnan(value)}


def _said(fits: Sequence[BaselineFit], fidelity: str, target: str) -> dict[str, Any]:
    for fit in fits:
        if (fit.fidelity, fit.target) == (fidelity, target):
            return {
                "inherited": [SYMBOLS[number - 1] for number in fit.inherited],
                "num_rows": fit.num_rows,
                "num_trimmed": fit.num_trimmed,
                "label_std": fit.label_std,
                "residual_mean": fit.residual_mean,
                "residual_mae": fit.residual_mae,
                "residual_rmse": fit.residual_rmse,
            }
    return {}
