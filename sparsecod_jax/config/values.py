"""How is an experiment written as plain values, and read back?

Config values: what a ConfigDict or config.json holds, nested dicts of numbers and words.
"""

import dataclasses
import difflib
import json
from typing import Any, Literal, get_args, get_origin, get_type_hints

from sparsecod_jax.config.experiment import Experiment
from sparsecod_jax.errors import ConfigError

LARGEST_FLOAT = 3.4e38  # float32 has no larger number
LARGEST = 2**40  # of a whole number; no size is as large


def from_dict(values: dict[str, Any], cls: type = Experiment, where: str = "") -> Any:
    """Builds `cls` from nested plain values.

    Args:
      where: the dotted name of the section, which messages begin with.

    Raises:
      ConfigError: a name is unknown, or a value is impossible or of another type.
    """
    if not isinstance(values, dict):
        section = where.rstrip(".") or "the config"
        raise ConfigError(
            f"{section}={_brief(values)} is not a section: give it fields"
        )
    hints = get_type_hints(cls)
    fields = {}
    for name, value in values.items():
        if name not in hints:
            advice = _advice(str(name), list(hints), where)
            raise ConfigError(f"{where}{name} is not a config field: {advice}")
        fields[name] = _field(value, hints[name], where + name)
    return cls(**fields)


def _advice(name: str, known: list[str], where: str) -> str:
    guess = difflib.get_close_matches(name, known, n=1)
    if guess:
        return f"did you mean {where}{guess[0]}?"
    return f"choose from {sorted(known)}"


def _field(value: Any, hint: Any, where: str) -> Any:
    """The value of one field, of the type that its annotation says."""
    if dataclasses.is_dataclass(hint):
        return from_dict(value, hint, where + ".")  # pyright: ignore[reportArgumentType]
    if get_origin(hint) is Literal:
        return _choice(value, get_args(hint), where)
    if get_origin(hint) is tuple:
        return _names(value, where)
    return _number(value, hint, where)


def _choice(value: Any, choices: tuple, where: str) -> Any:
    if value not in choices:
        known = list(choices)
        raise ConfigError(f"{where}={_brief(value)} is not known: choose from {known}")
    return value


def _names(value: Any, where: str) -> tuple[str, ...]:
    is_list = isinstance(value, (list, tuple))
    if not is_list or not all(isinstance(item, str) for item in value):
        message = f"{where}={_brief(value)} is not a list of names: write it as one"
        raise ConfigError(message)
    return tuple(value)


def _number(value: Any, hint: type, where: str) -> Any:
    """A number, a truth value or a word; a whole number is as good as a float."""
    if type(value) is int and abs(value) >= LARGEST:
        raise ConfigError(f"{where} is {_brief(value)}: choose a smaller one")
    if hint is float and type(value) is int:
        value = float(value)
    if type(value) is not hint:
        kind = hint.__name__
        message = f"{where}={_brief(value)} is not of type {kind}: write it as one"
        raise ConfigError(message)
    if hint is float and not abs(value) < LARGEST_FLOAT:
        message = f"{where}={value!r} is not finite in float32: choose another number"
        raise ConfigError(message)
    return value


def _brief(value: Any) -> str:
    if isinstance(value, int) and abs(value) >= LARGEST:
        return "a huge number"
    return repr(value)[:200]


def to_dict(experiment: Experiment) -> dict[str, Any]:
    """The resolved config as plain JSON values; `from_dict` is its inverse."""
    return json.loads(json.dumps(dataclasses.asdict(experiment)))


def flatten(values: dict[str, Any], where: str = "") -> dict[str, Any]:
    """Nested values as one level of dotted names."""
    flat = {}
    for name, value in values.items():
        if isinstance(value, dict):
            flat |= flatten(value, f"{where}{name}.")
        else:
            flat[where + name] = value
    return flat
