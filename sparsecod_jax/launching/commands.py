"""How is a command of another program run? Command lines: lists of words, never through a shell."""

import shlex
import subprocess
from collections.abc import Sequence

from sparsecod_jax.errors import ConfigError, SparsecodError


def output_of(argv: Sequence[str]) -> str:
    """The standard output of a command.

    Secrets belong into the environment, never into `argv`: errors name the words, and
    nothing of the environment.

    Raises:
      ConfigError: there is no such program here.
      SparsecodError: it failed; the message has its standard error.
    """
    try:
        done = subprocess.run(
            argv, check=False, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {argv[0]} here: install it, or go to a machine that has it"
        ) from error
    if done.returncode:
        raise SparsecodError(
            f"`{shlex.join(argv)}` failed with {done.returncode}: {done.stderr.strip()}"
        )
    return done.stdout
