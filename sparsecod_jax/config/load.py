"""How does a config file become an experiment? ConfigDict and flags stop at this door."""

import dataclasses
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from sparsecod_jax.config import Experiment, from_dict, python_file
from sparsecod_jax.errors import ConfigError


def default_config() -> Any:
    """An unresolved ConfigDict of every field at its default: where a config file starts from."""
    return _config_dict(Experiment)


def _config_dict(cls) -> ConfigDict:
    entries = {}
    for field in dataclasses.fields(cls):
        nested = dataclasses.is_dataclass(field.default)
        entries[field.name] = (
            _config_dict(type(field.default)) if nested else field.default
        )
    return ConfigDict(entries)


def load_experiment(
    spec: str, overrides: list[str] | tuple[str, ...] = ()
) -> Experiment:
    """Reads `configs/x.py:arg` with overrides such as `--config.model.n_layers=8`. A config file is Python code and is executed.

    Raises:
      ConfigError: the file, a field or a value is not usable; the message names the fix.
    """
    made = python_file.call(spec, "get_config", "config file")
    if not isinstance(made, ConfigDict):
        raise ConfigError(
            f"get_config of {spec} returns no ConfigDict: have it change and return `config_file.default_config()`"
        )
    argv, values = ["sparsecod", *overrides], flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", made, flag_values=values, sys_argv=argv
        )
        values(argv)
        fields = holder.value.to_dict()
    except (
        Exception
    ) as error:  # the libraries raise unrelated types for words that they can't read
        raise ConfigError(
            f"{' '.join([spec, *overrides])} can't be read: {_gist(error)}"
        ) from error
    return from_dict(fields)


def _gist(error: Exception) -> str:
    """What went wrong in one line: config_flags wraps an error in another, or ends its message with a traceback."""
    if error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, KeyError):
        return f"unknown name {error.args[0]}".replace("\n", ": ")
    return (str(error).strip() or type(error).__name__).splitlines()[-1]
