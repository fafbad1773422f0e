"""ConfigDict at the edge, frozen dataclasses inside.

A config file returns the `ConfigDict` of a dataclass, the command line overrides
its fields, and the library sees the dataclass again. Defaults stand in the
dataclass and nowhere else; an unknown key or a value of another type is an error.

Another `name` makes a model or a task another one: `--config.task.name=pair`. What the
config changed from the defaults of the old one is kept where the new one has it; all
else is the new one's default. Names are set before all other overrides, wherever they
stand, so these are of the new one's fields.
"""

import ast
import dataclasses
import json
import math
import runpy
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ml_collections import config_dict

from lm.cli import suggest
from lm.types import UserError

T = TypeVar("T")

# Fields whose `name` chooses their class -> {name: dataclass}. A root of configs adds
# its own.
CHOICES: dict[str, Mapping[str, type]] = {}


def to_config_dict(config: Any) -> config_dict.ConfigDict:
    """Returns the ConfigDict of a (nested) dataclass."""
    return config_dict.ConfigDict(dataclasses.asdict(config))


def from_config_dict(
    cls: type[T],
    values: Mapping[str, Any],
    tables: Mapping[str, Mapping[str, type]] | None = None,
    where: str = "config",
) -> T:
    """Builds a dataclass from a mapping, strictly.

    Args:
        cls: The dataclass; its nested dataclasses are built likewise.
        values: A ConfigDict, or a dict read from `config.json`. Fields that it
            lacks take the dataclass's defaults.
        tables: For a field whose class depends on its `name` key: field name →
            {name: dataclass}.
        where: The path of `values`, for messages.

    Raises:
        UserError: If a key is unknown or a value has another type.
    """
    hints = typing.get_type_hints(cls)
    fields = {field.name for field in dataclasses.fields(cls)}  # pyright: ignore
    built = {}
    for key, value in dict(values).items():
        if key not in fields:
            raise UserError(f"unknown key {where}.{key}{suggest(key, sorted(fields))}")
        if tables and key in tables:
            chosen = _chosen(tables[key], value.get("name", ""), f"{where}.{key}")
            built[key] = from_config_dict(chosen, value, None, f"{where}.{key}")
        elif dataclasses.is_dataclass(hints[key]):
            built[key] = from_config_dict(hints[key], value, None, f"{where}.{key}")  # pyright: ignore
        else:
            built[key] = _typed(value, hints[key], f"{where}.{key}")
    try:
        return cls(**built)
    except TypeError as error:
        raise UserError(f"{where}: {error}") from error


def _chosen(table: Mapping[str, type], name: str, where: str) -> type:
    """Returns the class of a name."""
    if name not in table:
        raise UserError(f"unknown {where}.name {name!r}{suggest(name, sorted(table))}")
    return table[name]


def is_choice(key: str) -> bool:
    """Returns whether a dotted key is a name that chooses a class."""
    group, _, field = key.partition(".")
    return group in CHOICES and field == "name"


def choose(group: str, name: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the values of a field that gets another name; see above.

    Args:
        group: The field, one of `CHOICES`.
        name: The new name.
        values: Those of the old name.

    Raises:
        UserError: If either name is unknown.
    """
    old, new = (
        dataclasses.asdict(_chosen(CHOICES[group], each, f"config.{group}")())
        for each in (values["name"], name)
    )
    changed = {key for key in old.keys() & new.keys() if values[key] != old[key]}
    return new | {key: values[key] for key in changed - {"name"}}


def _typed(value: Any, hint: Any, where: str) -> Any:
    """Returns `value` if it is a `hint`; widens int → float and list → tuple."""
    if typing.get_origin(hint) is tuple and isinstance(value, list | tuple):
        item = typing.get_args(hint)[0]
        return tuple(_typed(v, item, f"{where}[{i}]") for i, v in enumerate(value))
    if hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    plain = typing.get_origin(hint) or hint
    if plain is Any or (type(value) is plain):
        return value
    name = getattr(plain, "__name__", str(plain))
    raise UserError(f"{where} must be of type {name}, not {value!r}")


def check_choice(where: str, value: str, choices: Sequence[str]) -> None:
    """Raises a UserError that names the nearest choice unless `value` is one."""
    if value not in choices:
        raise UserError(f"unknown {where} {value!r}{suggest(value, sorted(choices))}")


def check_range(
    where: str, value: float, least: float, below: float = math.inf
) -> None:
    """Raises a UserError unless least <= value < below; a NaN never is.

    >>> check_range("optim.b1", 0.9, 0, 1)
    """
    if not least <= value < below:
        limit = f" and less than {below}" if below < math.inf else ""
        raise UserError(f"{where} must be at least {least}{limit}, not {value}")


def load(path: str, overrides: Sequence[str] = ()) -> config_dict.ConfigDict:
    """Runs a config file's `get_config` and applies command-line overrides.

    Args:
        path: A Python file; what stands behind a colon is `get_config`'s argument.
        overrides: Words such as `--config.optim.learning_rate=1e-3`.

    Raises:
        UserError: If the file is missing or broken, or an override does not fit.
    """
    name, _, argument = path.partition(":")
    config = call(name, "get_config", *([argument] if argument else []))
    for word in sorted(overrides, key=lambda word: not is_choice(_key(word))):
        override(config, word)
    return config


def _key(word: str) -> str:
    """Returns what an override is of.

    >>> _key("--config.optim.b1=0.9")
    'optim.b1'
    """
    return word.partition("=")[0].removeprefix("--config.")


def call(path: str, function: str, *arguments: str, cure: str = "write one") -> Any:
    """Runs a config file and returns what a function of it returns.

    Raises:
        UserError: If the file is missing or broken, or has no such function.
    """
    if not Path(path).is_file():
        shipped = sorted(str(p) for p in Path("configs").glob("*.py"))
        raise UserError(f"no config file {path!r}{suggest(path, shipped)}")
    try:
        found = runpy.run_path(path)
        if function in found:
            return found[function](*arguments)
    except UserError:
        raise
    except Exception as error:
        reason = " ".join(str(error).split())
        raise UserError(
            f"config {path} is broken: {type(error).__name__}: {reason}; mend it"
        ) from error
    raise UserError(f"config {path} has no {function}(); {cure}")


def override(config: Any, word: str) -> None:
    """Sets the field that a word such as `--config.optim.b1=0.9` names.

    A field of several values takes one without parentheses. A name that chooses a class
    brings its fields.

    Raises:
        UserError: If there is no such field, or the value has another type.

    >>> config = config_dict.ConfigDict({"optim": {"b1": 0.5, "decay": ("bias",)}})
    >>> override(config, "--config.optim.b1=1")
    >>> override(config, "--config.optim.decay=scale")
    >>> config.optim.b1, config.optim.decay
    (1.0, ('scale',))
    """
    key, (_, has_value, text) = _key(word), word.partition("=")
    *groups, name = key.split(".")
    where: str = "config"
    owner: Any = config
    old: Any = config
    for part in (*groups, name):
        known = list(old) if isinstance(old, config_dict.ConfigDict) else []
        if part not in known:
            raise UserError(f"unknown key {where}.{part}{suggest(part, known)}")
        where += f".{part}"
        owner, old = old, old[part]
    if isinstance(old, config_dict.ConfigDict):
        raise UserError(
            f"{where} has fields of its own; set one, such as {where}.{next(iter(old))}"
        )
    value: Any = text
    if not isinstance(old, str):
        try:
            value = ast.literal_eval(
                text.capitalize() if isinstance(old, bool) else text
            )
        except (ValueError, SyntaxError):
            value = text
    if not has_value and isinstance(old, bool):
        value = True
    if isinstance(old, tuple) and not isinstance(value, tuple | list):
        value = (value,)
    if is_choice(key):
        config[groups[0]] = choose(groups[0], text, owner)
    else:
        owner[name] = _typed(value, type(old), where)


def read(path: Path) -> dict[str, Any]:
    """Reads the `config.json` of a workdir.

    Raises:
        UserError: If the file is missing or is not JSON.
    """
    try:
        values = json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):
        raise UserError(f"no {path}; is {path.parent} a workdir of lm.train?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path} is not JSON: {error}; bring it back from a copy"
        ) from error
    if not isinstance(values, dict):
        raise UserError(f"{path} is not a JSON object; bring it back from a copy")
    return values
