"""How does a config file become an experiment?

Config files: Python that returns a ConfigDict, which flags of the command line override.
Neither ConfigDict nor flags go further than this module.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

from sparsecod_jax.config import Experiment, from_dict, python_file
from sparsecod_jax.errors import ConfigError


def default_config() -> Any:
    """A ConfigDict of every field at its default: where a config file starts from."""
    return _config_dict(Experiment)


def _config_dict(cls: type) -> ConfigDict:
    entries = {}
    for field in dataclasses.fields(cls):
        if dataclasses.is_dataclass(field.default):
            entries[field.name] = _config_dict(type(field.default))
        else:
            entries[field.name] = field.default
    return ConfigDict(entries)


def load_experiment(spec: str, overrides: Sequence[str] = ()) -> Experiment:
    """Runs a config file, which is Python code, and resolves what it returns.

    Args:
      spec: CONFIG[:SCALE], the name of a config that is installed with the package, such as
        dense_1b:nano, or the path of a file.
      overrides: words such as `--config.model.n_layers=8`.

    Raises:
      ConfigError: the file, a field or a value is not usable; the message names the fix.
    """
    made = python_file.call(spec, python_file.CONFIG)
    if not isinstance(made, ConfigDict):
        raise ConfigError(
            f"get_config of {spec} returns no ConfigDict: "
            "have it change and return `config.load.default_config()`"
        )
    return from_dict(_overridden(made, spec, overrides))


def _overridden(
    made: ConfigDict, spec: str, overrides: Sequence[str]
) -> dict[str, Any]:
    """The fields of a config once the words of the command line are applied."""
    argv = ["sparsecod", *overrides]
    values = flags.FlagValues()
    try:
        holder = config_flags.DEFINE_config_dict(
            "config", made, flag_values=values, sys_argv=argv
        )
        values(argv)
        return holder.value.to_dict()
    except (
        Exception
    ) as error:  # the libraries raise unrelated types for unreadable words
        words = " ".join([spec, *overrides])
        raise ConfigError(f"{words} can't be read: {_gist(error)}") from error


def _gist(error: Exception) -> str:
    """What went wrong, in one line.

    config_flags wraps an error in another, or ends its message with a traceback.
    """
    if error.args and isinstance(error.args[0], Exception):
        error = error.args[0]
    if isinstance(error, KeyError):
        return f"unknown name {error.args[0]}".replace("\n", ": ")
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1]
