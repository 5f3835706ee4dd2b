"""What the user set and where: option over environment over nnx.toml over default, each value with its origin."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from nnunet_ext.errors import Usage

DEFAULT = "default"
T = TypeVar("T")


@dataclass(frozen=True)
class Known:
    """One setting nnx understands: its name in nnx.toml, how a word becomes a value, what it does, and the name of
    its environment variable when that is nnU-Net's."""

    name: str
    kind: Callable[[str], Any]
    help: str
    environment: str = ""

    @property
    def variable(self) -> str:
        """`target` is NNX_TARGET; nnU-Net's three folders keep nnU-Net's own names."""
        return self.environment or f"NNX_{self.name.upper()}"

    def word(self, value: Any) -> str:
        """A value as it would be typed."""
        return "none" if value is None else str(value)

    @property
    def option(self) -> str:
        return f"--{self.name.replace('_', '-')}"


@dataclass(frozen=True)
class Value:
    """A setting's value and where it came from: an option, an environment variable, a file's path, or DEFAULT; then
    the value is None, and whoever uses the setting has its own default."""

    value: Any
    origin: str


def or_none(kind: Callable[[str], T]) -> Callable[[str], T | None]:
    """A setting that the word `none` switches off."""

    def parse(word: str) -> T | None:
        return None if word.lower() == "none" else kind(word)

    parse.__name__ = kind.__name__
    return parse


def whole(smallest: int) -> Callable[[str], int]:
    """A whole number of at least `smallest`."""

    def parse(word: str) -> int:
        number = int(word)
        if number < smallest:
            raise ValueError(word)
        return number

    parse.__name__ = f"whole number of at least {smallest}"
    return parse


def share(word: str) -> float:
    """A number above 0 and at most 1."""
    number = float(word)
    if not 0 < number <= 1:
        raise ValueError(word)
    return number


share.__name__ = "number above 0 and at most 1"


def minutes(word: str) -> float:
    """A number of minutes, 0 or more."""
    number = float(word)
    if not 0 <= number < float("inf"):
        raise ValueError(word)
    return number


minutes.__name__ = "number of minutes"


def yes(word: str) -> bool:
    """A switch: 1, true, yes or on; 0, false, no or off."""
    if word.lower() in ("1", "true", "yes", "on"):
        return True
    if word.lower() in ("0", "false", "no", "off"):
        return False
    raise ValueError(word)


yes.__name__ = "yes or no"

FOLDERS = (
    Known("raw", str, "nnU-Net's folder of raw data.", "nnUNet_raw"),
    Known("preprocessed", str, "nnU-Net's folder of preprocessed data.", "nnUNet_preprocessed"),
    Known("results", str, "nnU-Net's folder of trained models.", "nnUNet_results"),
)
TRAINING = (
    Known("epochs", or_none(whole(1)), "Length of the training and of its learning rate schedule."),
    Known("iterations", or_none(whole(1)), "Training iterations per epoch (nnU-Net: 250)."),
    Known("val_iterations", or_none(whole(1)), "Validation iterations per epoch (nnU-Net: 50)."),
    Known("seed", or_none(whole(0)), "Seed of every random number generator."),
    Known("target", or_none(float), "Stop when the EMA pseudo Dice reaches this, such as 0.70."),
    Known("patience", or_none(whole(1)), "Stop after so many epochs without improvement of the EMA."),
    Known("min_delta", float, "Smaller gains of the EMA are no improvement (5e-4)."),
    Known("min_epochs", whole(0), "Neither target nor patience stop earlier."),
    Known("max_hours", or_none(float), "Stop after so many hours of training, all machines together."),
    Known("cooldown", whole(0), "Epochs of annealing the learning rate to 0 before such a stop."),
    Known("checkpoint_minutes", minutes, "Training that a crash may cost at most (15)."),
    Known("memory_limit", share, "Share of GPU and RAM above which nnx cleans up and warns (0.8)."),
    Known("cleanup_every", whole(0), "Also clean up after so many iterations; slow."),
    Known("allow_lr_jump", yes, "Continue although another number of epochs changes the learning rate."),
)
KNOWN = (*FOLDERS, *TRAINING)


def load(
    options: Mapping[str, str | None],
    environ: Mapping[str, str],
    file: tuple[Path, Mapping[str, Any]] | None,
    known: tuple[Known, ...] = KNOWN,
) -> dict[str, Value]:
    """Every known setting's value and origin; options are words as typed, None when not typed.

    Raises Usage for a name in the file that is no setting, and for a value that is not of the setting's kind.
    """
    if file is not None:
        _check_names(file, known)
    return {setting.name: _value(setting, options, environ, file) for setting in known}


def find_file(folder: Path, home: Path) -> tuple[Path, Mapping[str, Any]] | None:
    """`nnx.toml` in the working directory, else `~/.config/nnx/config.toml`, parsed. Raises Usage."""
    for path in (folder / "nnx.toml", home / ".config" / "nnx" / "config.toml"):
        if path.is_file():
            return path, _read_toml(path)
    return None


def _read_toml(path: Path) -> Mapping[str, Any]:
    if sys.version_info >= (3, 11):
        import tomllib
    else:  # the same parser under its name from before it came into Python
        import tomli as tomllib
    try:
        parsed: Mapping[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as wrong:
        raise Usage(f"{path} is not TOML: {wrong}.", "Settings are lines such as: target = 0.70") from wrong
    return parsed


def _value(
    setting: Known,
    options: Mapping[str, str | None],
    environ: Mapping[str, str],
    file: tuple[Path, Mapping[str, Any]] | None,
) -> Value:
    word = options.get(setting.name)
    if word is not None:
        return Value(_parse(setting, word, setting.option), setting.option)
    if environ.get(setting.variable):
        return Value(_parse(setting, environ[setting.variable], setting.variable), setting.variable)
    if file is not None and setting.name in file[1]:
        return Value(_parse(setting, str(file[1][setting.name]), str(file[0])), str(file[0]))
    return Value(None, DEFAULT)


def _parse(setting: Known, word: str, origin: str) -> Any:
    try:
        return setting.kind(word)
    except ValueError as wrong:
        kind = {"float": "number", "int": "whole number"}.get(setting.kind.__name__, setting.kind.__name__)
        raise Usage(f"{origin} sets {setting.name} to '{word}', which is no {kind}.") from wrong


def _check_names(file: tuple[Path, Mapping[str, Any]], known: tuple[Known, ...]) -> None:
    names = [setting.name for setting in known]
    for name in file[1]:
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            raise Usage(
                f"{file[0]} sets '{name}', which is no setting of nnx.",
                f"Did you mean {close[0]}?" if close else f"There is: {', '.join(names)}.",
            )
