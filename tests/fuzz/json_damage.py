"""JSON whose values are of other kinds than they should be; some ask for modules to be imported."""

from __future__ import annotations

import copy
import json
import random
import re

from fuzz.guard import CANARY

VALUES: tuple[object, ...] = (
    *(
        None,
        True,
        False,
        0,
        -1,
        1e300,
        10**40,
        10**400,
        float("nan"),
        float("inf"),
        "",
        "abc",
        "1.5",
        "\ud800",
        [],
        {},
    ),
    *([[]], [None], {"": None}, [1, 2, 3], [[0.0] * 3] * 3, {"a": {"b": {}}}, "A" * 10000),
    {"@module": CANARY, "@class": "Thing", "data": [1]},
    {"@module": "os", "@callable": "system", "@bound": None},
    {"@module": f"{CANARY}.inner", "@class": "Thing", "@version": None},
    {"@module": "builtins", "@class": "set", "data": [1]},
    {"@module": "numpy", "@class": "array", "dtype": "object", "data": [[1]]},
    {"@module": "datetime", "@class": "datetime", "string": "now"},
    {"@module": "pathlib", "@class": "Path", "string": "/etc/passwd"},
)


def change(entry: object, chance: random.Random) -> tuple[str, object]:
    """What was changed, and the entry with another value, without one, or with one more at a random place."""
    entry = copy.deepcopy(entry)
    if chance.random() < 0.05:
        return "nested deeply", f"@deep {chance.choice((50, 2000, 100_000))}"
    places = list(_places(entry))
    if not places:
        return "value of another kind", chance.choice(VALUES)
    holder, key = chance.choice(places)
    act = chance.choice(("replace", "replace", "delete", "add"))
    if act == "delete":
        del holder[key]  # type: ignore[attr-defined]
    elif act == "add" and isinstance(holder, dict):
        holder[chance.choice(("properties", "@module", "charge", "label", "", "cif", "sites"))] = (
            chance.choice(VALUES)
        )
    else:
        holder[key] = chance.choice(VALUES)  # type: ignore[index]
    return f"{act} {key}", entry


def dumped(value: object) -> str:
    """The JSON of a value; `json.dumps` itself cannot write what is nested deeply."""
    text = json.dumps(value)
    return re.sub(r'"@deep (\d+)"', lambda found: "[" * int(found[1]) + "]" * int(found[1]), text)


def _places(value: object) -> list[tuple[object, object]]:
    found: list[tuple[object, object]] = []
    if isinstance(value, dict):
        for key, item in value.items():
            found += [(value, key), *_places(item)]
    if isinstance(value, list):
        for place, item in enumerate(value):
            found += [(value, place), *_places(item)]
    return found
