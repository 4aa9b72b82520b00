"""Composed YAML to typed, validated dataclasses. The only importer of hydra and omegaconf in the package.

`compose` and `load` are the two halves; `run_stage` is what the scripts `src/train_*.py` and the command line
call: hydra composes and makes the run's folder, the settings are checked before anything heavy starts, and a
mistake ends with one sentence and exit code 2. No `DictConfig` travels further than this file.
"""

from __future__ import annotations

import difflib
import logging
import os
import re
import shlex
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import hydra
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import ConfigCompositionException, HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import InterpolationKeyError, OmegaConfBaseException

from latentite.base.plain import declared, default_values, from_plain, is_text

if TYPE_CHECKING:
    from latentite.training.fit import FitResult

log = logging.getLogger(__name__)

Config = TypeVar("Config")

USER_ERROR = 2
"""Exit code for what the user can set right."""

HYDRA_FOLDERS = {"hydra.run.dir", "hydra.sweep.dir"}
"""Settings of hydra that are paths."""

_OVERRIDE = re.compile(r"^(?P<head>\+{0,2}(?P<key>[A-Za-z_][\w./@]*))=(?P<value>.*)$", re.DOTALL)

HYDRAS_OWN = {".hydra", "train.log"}
"""Files that hydra puts into a run's folder before the stage has begun (`configs/hydra/default.yaml`)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class StageEntry:
    """A training stage as the command line knows it; each part is imported only when it is needed."""

    config_name: str
    """Of its primary YAML file, and of the function in `stages.py` that runs it."""
    settings_name: str
    """Dotted name of the dataclass of its settings, inside the package."""

    def settings(self) -> type[Any]:
        """The dataclass of its settings. Imports torch, which takes seconds, but not Lightning, which takes more."""
        module, _, name = self.settings_name.rpartition(".")
        return getattr(import_module(f"latentite.{module}"), name)

    def run(self, config: Any) -> FitResult:
        """Train."""
        from latentite import stages

        return getattr(stages, self.config_name)(config)


STAGES = {
    "vae": StageEntry(config_name="train_vae", settings_name="training.stage_settings.TrainVAEConfig"),
    "ldm": StageEntry(config_name="train_ldm", settings_name="training.stage_settings.TrainLDMConfig"),
    "rl": StageEntry(config_name="train_rl", settings_name="rl.config.TrainRLConfig"),
    "predictor": StageEntry(
        config_name="train_predictor", settings_name="predictor.settings.TrainPredictorConfig"
    ),
    "gpt": StageEntry(config_name="train_gpt", settings_name="training.stage_settings.TrainGPTConfig"),
}
"""Training stages by name."""


def config_dir() -> Path:
    """The folder of YAML files: that of the source tree, else the copy inside the installed package.

    Raises:
        ValueError: if neither is there.
    """
    package = Path(__file__).resolve().parent
    for folder in (package.parents[1] / "configs", package / "_configs"):
        if (folder / "train_vae.yaml").is_file():
            return folder
    raise ValueError(f"configs/ must lie beside src/ or in {package}, got neither; reinstall latentite")


def compose(config_name: str, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose a config as the command line does, without running anything.

    Raises:
        ValueError: in one sentence, if an override does not fit.
    """
    GlobalHydra.instance().clear()
    entry = next(entry for entry in STAGES.values() if entry.config_name == config_name)
    _prepare(entry)
    quoted = with_quotes(entry, overrides)
    try:
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            return _to_plain(_compose_loosely(config_name, quoted)[0])
    except (HydraException, OmegaConfBaseException) as error:
        raise ValueError(one_sentence(error)) from error
    finally:
        GlobalHydra.instance().clear()


def _compose_loosely(config_name: str, overrides: list[str]) -> tuple[DictConfig, list[str]]:
    """Compose, adding keys that are in no YAML file: `load` knows or refuses them, with better messages.

    Returns:
        What is composed, and the overrides with a `+` before each such key.
    """
    while True:
        try:
            return hydra.compose(config_name, overrides=overrides), overrides
        except ConfigCompositionException as error:
            unknown = re.match(r"Could not override '([^']+)'", str(error))
            position = next(
                (i for i, o in enumerate(overrides) if unknown and o.startswith(f"{unknown[1]}=")), None
            )
            if position is None:
                raise
            overrides = [*overrides[:position], f"+{overrides[position]}", *overrides[position + 1 :]]


def load(kind: type[Config], values: dict[str, Any]) -> Config:
    """A typed config from composed values.

    Raises:
        ValueError: naming the dotted key of the first mistake.
    """
    return from_plain(kind, values)


def run_stage(stage: str) -> None:
    """Run a training stage with the overrides in `sys.argv`.

    Ends the process: 0 when the run finished, or was told to stop and saved; 2 for a mistake of the user.
    """
    entry = STAGES[stage]
    _prepare(entry)

    def task(composed: DictConfig) -> None:
        run_dir = HydraConfig.get().runtime.output_dir
        with _user_errors(), discarding_unbegun(Path(run_dir)):
            entry.run(load(entry.settings(), _to_plain(composed) | {"run_dir": run_dir}))

    main = hydra.main(version_base="1.3", config_path=str(config_dir()), config_name=entry.config_name)(task)
    with _user_errors():
        sys.argv[1:] = _flags_first(with_quotes(entry, sys.argv[1:]))
        check_first(entry, sys.argv[1:])
        sys.argv[1:] = with_new_keys(entry, sys.argv[1:])
        main()


def check_first(entry: StageEntry, arguments: Sequence[str]) -> None:
    """Refuse wrong settings before hydra makes a folder for the run.

    Not for sweeps, whose overrides are lists, nor where hydra is only asked to show something.

    Raises:
        ValueError: naming the setting.
    """
    if any(argument.startswith("-") for argument in arguments):
        return
    overrides = [argument for argument in arguments if not argument.startswith("hydra.")]
    values = compose(entry.config_name, overrides)
    if "run_dir" in values:
        raise ValueError(f"run_dir is not a setting; a run's folder is hydra.run.dir={values['run_dir']}")
    load(entry.settings(), values)


def with_quotes(entry: StageEntry, arguments: Sequence[str]) -> list[str]:
    """Arguments in which every value of a path or name is text to hydra, whatever characters it has; `~` is the home.

    To hydra's grammar `=`, `~`, `#`, quotes, brackets and letters with accents are mistakes, and a comma is a sweep. A
    value that hydra reads as text already (quoted, with escapes or with `${...}`) stays as it is.

    Raises:
        ValueError: for what cannot be read, with what to type instead.
    """
    is_sweep = any(argument in ("-m", "--multirun") for argument in arguments)
    quoted = []
    for before, argument in zip(["-", *arguments], arguments, strict=False):
        if _is_override(argument):
            quoted.append(_quoted(entry, argument, is_sweep=is_sweep))
            continue
        if not before.startswith("-") and not argument.startswith("-"):
            raise ValueError(
                f"{argument} is not key=value; if it belongs to what stands before it, type "
                f"{shlex.quote(f'{before} {argument}')}"
            )
        quoted.append(argument)
    return quoted


def _quoted(entry: StageEntry, argument: str, *, is_sweep: bool) -> str:
    """One argument of `with_quotes`."""
    match = _OVERRIDE.match(argument)
    if match is None or match["value"].lower() == "null" or (is_sweep and "," in match["value"]):
        return argument
    key, value = match["key"], match["value"]
    text, is_read = _as_text(value)
    if text is None and is_read and not _names_text(key):  # a number, a list: for the setting's type to judge
        return argument
    if text is None:
        kind = str if key in HYDRA_FOLDERS else declared(entry.settings(), key)
        if kind is None or (is_read and not is_text(kind)):
            return argument
        if not is_text(kind) and (kind is not Any or value[0] in "[{('\""):
            proposal = shlex.quote(f"{match['head']}={_with_quotes(value, Quote.double)}")
            raise ValueError(
                f"{argument} cannot be read as key=value; where the value is a text, type {proposal}"
            )
        text = value
    home = os.path.expanduser(text) if _names_path(key) else text
    meant = (
        home.replace("${", r"\${") if os.path.exists(home) else home
    )  # the name of a file is no interpolation
    return argument if is_read and meant == _as_text(value)[0] else f"{match['head']}={_with_quotes(meant)}"


def _as_text(value: str) -> tuple[str | None, bool]:
    """The text that hydra reads (None: nothing, or something else), and whether it can read it at all."""
    try:
        override = OverridesParser.create().parse_override(f"key={value}")
    except HydraException:
        return None, False
    plain = None if override.is_sweep_override() else override.value()
    return str(plain) if isinstance(plain, (str, QuotedString)) else None, True


def _with_quotes(text: str, quote: Quote = Quote.single) -> str:
    return QuotedString(text=text, quote=quote).with_quotes()


def _names_path(key: str) -> bool:
    return key in HYDRA_FOLDERS or key.endswith(("_path", "_dir"))


def _names_text(key: str) -> bool:
    """True if a key may be that of a text: only then its type is looked up, which takes seconds."""
    return _names_path(key) or key.endswith("name")


def with_new_keys(entry: StageEntry, arguments: Sequence[str]) -> list[str]:
    """Arguments as hydra wants them: a `+` before every key that no YAML file has, such as `rl_module.replay.size`.

    What does not compose stays as it is: hydra says why.
    """
    places = [i for i, a in enumerate(arguments) if _is_override(a) and not a.startswith("hydra.")]
    overrides = list(arguments)
    _prepare(entry)
    try:
        singles = [_first_of_sweep(arguments[i]) for i in places]
        with hydra.initialize_config_dir(str(config_dir()), version_base="1.3"):
            _, loosened = _compose_loosely(entry.config_name, singles)
    except (HydraException, OmegaConfBaseException):
        return overrides
    finally:
        GlobalHydra.instance().clear()
    for i, before, after in zip(places, singles, loosened, strict=True):
        if after != before:
            overrides[i] = f"+{arguments[i]}"
    return overrides


def _first_of_sweep(text: str) -> str:
    """`key=1,2` as `key=1`; everything else as it is."""
    override = OverridesParser.create().parse_override(text)
    if not override.is_sweep_override():
        return text
    key, _, _ = text.partition("=")
    return f"{key}={next(iter(override.sweep_string_iterator()))}"


def _is_override(argument: str) -> bool:
    return not argument.startswith("-") and ("=" in argument or argument.startswith("~"))


def _flags_first(arguments: Sequence[str]) -> list[str]:
    """Flags before overrides: hydra refuses `a=1 --cfg job b=2`."""
    return sorted(arguments, key=_is_override)


@contextmanager
def discarding_unbegun(run_dir: Path) -> Iterator[None]:
    """Take the run's folder away where the run fails before anything of its own lies there.

    Hydra makes the folder first; checkpoints, for example, are only read, and refused, when the data are there. A
    folder that holds more, as one of an earlier run does, stays as it is.
    """
    try:
        yield
    except BaseException:
        with suppress(OSError):  # the error itself matters more; another process may have been quicker
            if run_dir != Path.cwd() and {path.name for path in run_dir.iterdir()} <= HYDRAS_OWN:
                shutil.rmtree(run_dir)
        raise


@contextmanager
def _user_errors() -> Iterator[None]:
    """End with one line and exit code 2 for what the user can set right; `HYDRA_FULL_ERROR=1` shows all."""
    try:
        yield
    except (ValueError, FileNotFoundError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        sys.stderr.write(f"error: {one_sentence(error)}\n")
        raise SystemExit(USER_ERROR) from None


def one_sentence(error: BaseException) -> str:
    """An error's message on one line, without Hydra's advice to add keys that no one reads."""
    if not isinstance(error, (HydraException, OmegaConfBaseException)):
        return " ".join(str(error).split())
    if missing := re.search(r"Could not find '([^'/]+)/([^']+)'", str(error)):
        group, name = missing.groups()
        folder = config_dir() / group
        names = sorted(str(path.relative_to(folder).with_suffix("")) for path in folder.rglob("*.yaml"))
        near = difflib.get_close_matches(name, names, n=5)
        if near and len(names) > 10:
            return f"{group}={name} does not exist; near it there are {', '.join(near)} ({len(names)} in all)"
        return f"{group}={name} does not exist; there are {', '.join(names)}"
    skipped = ("To append to your config", "full_key:", "object_type=", "See http", "Set the environment")
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    sentence = "; ".join(line for line in lines if not line.startswith(skipped)) or type(error).__name__
    sentence = re.sub(
        r"^\w+ raised while resolving interpolation: ", "", sentence
    )  # what a resolver said itself
    if isinstance(error, InterpolationKeyError):
        sentence += r"; to mean the characters themselves, put a backslash before the dollar sign: \${"
    return sentence


def _to_plain(composed: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    assert isinstance(values, dict), "a primary config is a section of keys"
    return {str(key): value for key, value in values.items()}


def _prepare(entry: StageEntry) -> None:
    """Give hydra what no YAML file holds: the resolver `hub`, and every setting at the default of its dataclass.

    The YAML files begin with these defaults and say only what differs, so that a default is written once.
    """
    from latentite.training.settings import EarlyStoppingConfig

    OmegaConf.register_new_resolver("hub", _hub, replace=True)
    for name, kind in ((entry.config_name, entry.settings()), ("early_stopping", EarlyStoppingConfig)):
        ConfigStore.instance().store(name=f"{name}_defaults", node=default_values(kind))


def _hub(name: str) -> str:
    """`${hub:name}`: path of a published checkpoint, fetched if it is not there."""
    from latentite import hub

    return str(hub.resolve(name))
