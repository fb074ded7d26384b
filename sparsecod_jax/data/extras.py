"""Is that optional package installed?

Optional dependencies: packages of the extra `data`, imported where they are needed.
"""

import importlib
from typing import Any

from sparsecod_jax.errors import ConfigError


def optional(module: str) -> Any:
    """A module of the extra `data`.

    Raises:
      ConfigError: it is not installed.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(
            f"{module} is not installed: pip install 'sparsecod-jax[data]'"
        ) from error
