"""Checkpoints: damaged, contradictory, and made to harm whoever opens them."""

from __future__ import annotations

import copy
import io
import json
import os
import pickletools
import random
import struct
import tempfile
import zipfile
from collections.abc import Callable
from functools import lru_cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from fuzz.case import Case, Entry
from fuzz.damage import damaged
from fuzz.guard import CANARY
from fuzz.json_damage import change as changed_value
from fuzz.json_damage import dumped
from fuzz.table_cases import cif_of, small_crystal

NAMES = (
    *(
        "os system",
        "posix system",
        "builtins eval",
        "builtins exec",
        "builtins getattr",
        "subprocess Popen",
        "runpy run_path",
    ),
    *(
        "torch load",
        "torch.hub load",
        "torch.serialization load",
        "numpy.core.multiarray _reconstruct",
        f"{CANARY} Thing",
    ),
    *(
        "collections OrderedDict",
        "collections defaultdict",
        "pathlib PosixPath",
        "functools partial",
        "torch FloatStorage",
    ),
    *(
        "src.vae_module.vae_module VAEModule",
        "builtins __import__",
        "importlib import_module",
        "torch._utils _rebuild_tensor_v2",
    ),
    *(
        "torch._utils _rebuild_sparse_tensor",
        "torch._utils _rebuild_parameter",
        "omegaconf.dictconfig DictConfig",
    ),
)
"""Of classes and functions that a pickle may ask for, harmless and harmful."""

Files = dict[str, bytes]
Bases = dict[str, Files]


class Harm:
    """Asks, when unpickled, to create a folder; where it is unpickled the guard sees it."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (f"/tmp/{CANARY}",)


@lru_cache(maxsize=1)
def bases() -> Bases:
    """Good checkpoints by kind, each as its files; the first of them is the one to read."""
    import chemeleon2_files as small
    from latentite.checkpoint import export_portable
    from latentite.nn.predictor import PropertyPredictor
    from latentite.nn.predictor_config import PredictorConfig

    found: Bases = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        torch.manual_seed(0)
        predictor = PropertyPredictor(PredictorConfig(vae=small.vae_config(), targets=["band_gap"]))
        networks = {"vae": small.small_vae(), "ldm": small.small_ldm(), "predictor": predictor.eval()}
        for kind, network in networks.items():
            path = small.write_ours(folder / f"{kind}.ckpt", network)
            pair = export_portable(path, folder / f"{kind}_pair")
            found[kind] = {"x.ckpt": path.read_bytes()}
            found[f"{kind} pair"] = {"x.safetensors": pair[0].read_bytes(), "x.json": pair[1].read_bytes()}
        found["foreign vae"] = {"x.ckpt": small.write_vae(folder).read_bytes()}
        ldm = small.write_ldm(folder)
        found["foreign ldm"] = {
            "x.ckpt": ldm.read_bytes(),
            small.VAE_NAME: (folder / small.VAE_NAME).read_bytes(),
        }
    return found


def make(index: int, chance: random.Random) -> Case:
    """A checkpoint changed in one way, and a command that uses it."""
    kind = chance.choice(list(bases()))
    files = dict(bases()[kind])
    name = next(iter(files))
    case = Case(format="checkpoint", index=index, kind="as it is", source=name, entry=Entry.CHECKPOINT)
    changes = PAIR if name.endswith(".safetensors") else ZIP
    act = chance.choice([_bytes, _bytes, _bytes, *changes])
    case.kind = f"{kind}: {act.__name__.strip('_').replace('_', ' ')}"
    case.is_same = act in KEEPING
    if case.is_same:
        for original, content in bases()[kind].items():
            case.files[f"right/{original}"] = content
    act(files, chance)
    case.files |= files
    case.files["crystals/c.cif"] = cif_of(*small_crystal(chance)).encode()
    case.arguments = ["predict" if "predictor" in kind else "sample" if "ldm" in kind else "export"]
    if chance.random() < 0.3:
        case.arguments = [chance.choice(("predict", "sample", "export", "reconstruct"))]
    return case


def _bytes(files: Files, chance: random.Random) -> None:
    name = chance.choice([name for name in files if name.startswith("x.")])
    files[name] = damaged(files[name], chance)


def _flipped_bit(files: Files, chance: random.Random) -> None:
    name = next(iter(files))
    data = bytearray(files[name])
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)
    files[name] = bytes(data)


def _as_it_is(files: Files, chance: random.Random) -> None:
    return


# Zip files.


def _entries(content: bytes) -> dict[str, bytes]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def _zipped(entries: dict[str, bytes], compression: int = zipfile.ZIP_STORED) -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", compression) as archive:
        for name, content in entries.items():
            archive.writestr(zipfile.ZipInfo(name), content, compress_type=compression)
    return stream.getvalue()


def _rewrite(
    change: Callable[[dict[str, bytes], random.Random], None],
) -> Callable[[Files, random.Random], None]:
    def rewritten(files: Files, chance: random.Random) -> None:
        entries = _entries(files["x.ckpt"])
        change(entries, chance)
        files["x.ckpt"] = _zipped(entries)

    rewritten.__name__ = change.__name__
    return rewritten


def _storages(entries: dict[str, bytes]) -> list[str]:
    return [name for name in entries if "/data/" in name and entries[name]]


def _storage_shorter(entries: dict[str, bytes], chance: random.Random) -> None:
    name = chance.choice(_storages(entries))
    entries[name] = entries[name][: chance.randrange(len(entries[name]))]


def _storage_longer(entries: dict[str, bytes], chance: random.Random) -> None:
    entries[chance.choice(_storages(entries))] += bytes(chance.choice((1, 4, 4096)))


def _storage_missing(entries: dict[str, bytes], chance: random.Random) -> None:
    del entries[chance.choice(_storages(entries))]


def _entry_reaching_out(entries: dict[str, bytes], chance: random.Random) -> None:
    entries[chance.choice(("../out", "/tmp/latentite-fuzz-out", "x/../../out", "../../outside/out"))] = b"out"


def _folder_renamed(entries: dict[str, bytes], chance: random.Random) -> None:
    new = chance.choice(("../x", "/x", "", "y", "a/b", "é"))
    renamed = {f"{new}/{name.partition('/')[2]}": content for name, content in entries.items()}
    entries.clear()
    entries.update(renamed)


def _two_pickles(entries: dict[str, bytes], chance: random.Random) -> None:
    name = next(name for name in entries if name.endswith("data.pkl"))
    entries[chance.choice(("y/data.pkl", "data.pkl", "0/data.pkl", "x/y/data.pkl"))] = entries[name]


def _byte_order(entries: dict[str, bytes], chance: random.Random) -> None:
    name = next(iter(entries)).partition("/")[0]
    entries[f"{name}/byteorder"] = chance.choice((b"big", b"", b"little\n", b"x" * 100))
    entries[f"{name}/version"] = chance.choice((b"3\n", b"99", b"", b"-1"))


def _unpacking(files: Files, chance: random.Random) -> None:
    entries = _entries(files["x.ckpt"])
    place = chance.choice((*_storages(entries)[:3], next(name for name in entries if name.endswith(".pkl"))))
    entries[place] = bytes(chance.choice((1 << 20, 1 << 28)))
    files["x.ckpt"] = _zipped(entries, zipfile.ZIP_DEFLATED)


def _sizes_that_lie(files: Files, chance: random.Random) -> None:
    """The table of contents says other sizes than there are."""
    data = bytearray(files["x.ckpt"])
    signature = chance.choice((b"PK\x01\x02", b"PK\x03\x04"))
    places = [place for place in range(len(data)) if data[place : place + 4] == signature]
    place = chance.choice(places) + (20 if signature[2] == 1 else 18) + chance.choice((0, 4))
    struct.pack_into("<I", data, place, chance.choice((0, 1, 0xFFFFFFFF, 0x7FFFFFFF, 1 << 20)))
    files["x.ckpt"] = bytes(data)


def _other_name(entries: dict[str, bytes], chance: random.Random) -> None:
    """The pickle asks for another class or function in the place of one that it needs."""
    place = next(name for name in entries if name.endswith("data.pkl"))
    program = entries[place]
    found = [
        (position, str(argument))
        for opcode, argument, position in pickletools.genops(program)
        if opcode.name == "GLOBAL" and position is not None
    ]
    position, old = chance.choice(found)
    module, _, name = chance.choice(NAMES).partition(" ")
    end = position + 1 + len(old) + 1
    entries[place] = program[:position] + f"c{module}\n{name}\n".encode() + program[end:]


def _code_before(entries: dict[str, bytes], chance: random.Random) -> None:
    """The pickle calls something before it says what it has to say."""
    place = next(name for name in entries if name.endswith("data.pkl"))
    module, _, name = chance.choice(NAMES).partition(" ")
    call = f"c{module}\n{name}\n(X".encode() + struct.pack("<I", 12) + b"touch canary" + b"tR0"
    entries[place] = entries[place][:2] + call + entries[place][2:]


def _opcodes(entries: dict[str, bytes], chance: random.Random) -> None:
    """Opcodes of the pickle removed, doubled or replaced."""
    place = next(name for name in entries if name.endswith("data.pkl"))
    program = bytearray(entries[place])
    for _ in range(chance.choice((1, 3, 10))):
        position = chance.randrange(2, len(program))
        program[position] = chance.choice(
            b"(.012FIJKLMNPQRSTUVX]abcdeghijlopqrstu}\x80\x81\x82\x85\x86\x87\x88\x89\x8a\x93\x94"
        )
    entries[place] = bytes(program)


def _content(
    change: Callable[[dict[str, Any], random.Random], None],
) -> Callable[[Files, random.Random], None]:
    """A change of what the file says, written again by torch."""

    def saved(files: Files, chance: random.Random) -> None:
        try:
            content = torch.load(io.BytesIO(files["x.ckpt"]), weights_only=True)
        except Exception:  # noqa: BLE001  a foreign file: it has classes
            content = torch.load(io.BytesIO(bases()["vae"]["x.ckpt"]), weights_only=True)
        change(content, chance)
        stream = io.BytesIO()
        torch.save(content, stream)
        files["x.ckpt"] = stream.getvalue()

    saved.__name__ = change.__name__
    return saved


def _value(content: dict[str, Any], chance: random.Random) -> None:
    place = chance.choice(("latentite", "latentite", "config", "state_dict"))
    if place == "state_dict":
        names = dict.fromkeys(content["state_dict"], 0)
        _, other = changed_value(names, chance)
        content["state_dict"] = (
            {name: content["state_dict"].get(name) if item == 0 else item for name, item in other.items()}
            if isinstance(other, dict)
            else other
        )  # type: ignore[assignment]
    elif place == "config":
        _, content["latentite"]["config"] = changed_value(content["latentite"]["config"], chance)
    else:
        _, content["latentite"] = changed_value(content["latentite"], chance)


def _number(content: dict[str, Any], chance: random.Random) -> None:
    """Another number or name in the network's config."""
    places: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        items = (
            value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        )
        for key, item in items:
            if isinstance(item, bool | int | float | str):
                places.append((value, key))
            collect(item)

    collect(content["latentite"]["config"])
    holder, key = chance.choice(places)
    old = holder[key]
    if isinstance(old, bool):
        holder[key] = not old
    elif isinstance(old, int | float):
        holder[key] = type(old)(chance.choice((0, 1, -1, old + 1, old * 2, 3, 10**6, 10**12)))
    else:
        holder[key] = old + "x"


def _tensor(content: dict[str, Any], chance: random.Random) -> None:
    """One tensor of another kind, shape or extent."""
    state = content["state_dict"]
    name = chance.choice(list(state))
    old = state[name]
    kinds: list[Callable[[], Any]] = [
        lambda: torch.zeros(1).expand(10**12),
        lambda: old.to(torch.complex64),
        lambda: old.double(),
        lambda: old.half(),
        lambda: (old * 0).to(torch.int64),
        lambda: old > 0,
        lambda: old * float("nan"),
        lambda: old[..., :1],
        lambda: old.flatten(),
        lambda: old.to_sparse() if old.ndim else old,
        lambda: torch.empty(old.shape, device="meta"),
        lambda: torch.nn.Parameter(old) if old.is_floating_point() else old,
        lambda: torch.empty(0),
        lambda: torch.zeros(1).expand(old.shape),
    ]
    state[name] = chance.choice(kinds)()


def _harm(files: Files, chance: random.Random) -> None:
    content = {"state_dict": {}, "latentite": {}, "hyper_parameters": {}}
    content[chance.choice(list(content))] = {"x": Harm()}  # type: ignore[dict-item]
    stream = io.BytesIO()
    torch.save(
        content if chance.random() < 0.7 else Harm(),
        stream,
        _use_new_zipfile_serialization=chance.random() < 0.8,
    )
    files["x.ckpt"] = stream.getvalue()


# Pairs of safetensors and card.


def _card(files: Files, chance: random.Random) -> None:
    _, card = changed_value(json.loads(files["x.json"]), chance)
    files["x.json"] = dumped(card).encode()


def _card_number(files: Files, chance: random.Random) -> None:
    card = json.loads(files["x.json"])
    _number({"latentite": card}, chance)
    files["x.json"] = dumped(card).encode()


def _loan(files: Files, chance: random.Random) -> None:
    """The card borrows from itself, in a circle, from outside of its folder, or from what is no pair."""
    card = json.loads(files["x.json"])
    digest = card["sha256"]
    name = chance.choice(("x", "y", "../outside/x", "/etc/passwd", "", ".", "nowhere"))
    loan = chance.choice(
        (
            {"sha256": digest, "tensors": {"more": next(iter(card["config"]))}},
            {"sha256": digest, "tensors": {}},
            {"tensors": {}},
            {"sha256": digest},
            [],
            None,
            {"sha256": digest, "tensors": [1]},
        )
    )
    card["borrowed"] = chance.choice(({name: loan}, {name: loan}, {name: loan}, [name], name, 1))
    files["x.json"] = dumped(card).encode()
    back = {**card, "borrowed": {"x": {"sha256": digest, "tensors": {}}}}
    files["y.json"], files["y.safetensors"] = dumped(back).encode(), files["x.safetensors"]


def _header(files: Files, chance: random.Random) -> None:
    """Another header of the weights, with a card that knows of it."""
    weights = files["x.safetensors"]
    (length,) = struct.unpack("<Q", weights[:8])
    header = json.loads(weights[8 : 8 + length])
    if chance.random() < 0.5:
        name = chance.choice([name for name in header if name != "__metadata__"])
        entry = copy.deepcopy(header[name])
        key = chance.choice(("dtype", "shape", "data_offsets"))
        entry[key] = chance.choice(
            ("F64", "BF16", "I8", "BOOL", "X", [], [10**12], [-1], [0, 10**12], [5, 1], [0, 4], None)
        )
        header[name] = entry
    else:
        _, header = changed_value(header, chance)
    text = dumped(header).encode()
    size = chance.choice((len(text), len(text), len(text), 10**15, 0, len(text) - 1))
    files["x.safetensors"] = struct.pack("<Q", size) + text + weights[8 + length :]
    card = json.loads(files["x.json"])
    card["sha256"] = sha256(files["x.safetensors"]).hexdigest()
    files["x.json"] = dumped(card).encode()


def _half_a_pair(files: Files, chance: random.Random) -> None:
    name = chance.choice(("x.json", "x.safetensors"))
    files[name] = chance.choice(
        (b"", b"{}", b"[]", b"null", b"version https://git-lfs.github.com/spec/v1\n", b"\xff\xfe")
    )


ZIP: list[Callable[[Files, random.Random], None]] = [
    _flipped_bit,
    _flipped_bit,
    _as_it_is,
    _rewrite(_storage_shorter),
    _rewrite(_storage_longer),
    _rewrite(_storage_missing),
    _rewrite(_entry_reaching_out),
    _rewrite(_folder_renamed),
    _rewrite(_two_pickles),
    _rewrite(_byte_order),
    _rewrite(_other_name),
    _rewrite(_other_name),
    _rewrite(_code_before),
    _rewrite(_opcodes),
    _rewrite(_opcodes),
    _unpacking,
    _sizes_that_lie,
    _content(_value),
    _content(_value),
    _content(_value),
    _content(_number),
    _content(_number),
    _content(_tensor),
    _content(_tensor),
    _harm,
]
PAIR: list[Callable[[Files, random.Random], None]] = [
    _flipped_bit,
    _as_it_is,
    _card,
    _card,
    _card_number,
    _loan,
    _loan,
    _header,
    _half_a_pair,
]
KEEPING = [_flipped_bit, _as_it_is]
"""Changes after which the file may be refused, but must not be read as another one."""
