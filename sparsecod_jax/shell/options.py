"""Which words of a command line can nobody use, whatever the option?"""

import argparse
import math

from sparsecod_jax.errors import ConfigError

LARGEST = 2**63  # of a whole number
SEEDS = 2**32  # how many there are


def check(args: argparse.Namespace, words: list[str]) -> None:
    """Refuses what no verb of `args` could work with, before any looks at its own options.

    Args:
      words: the command line as it was given.

    Raises:
      ConfigError: a word is not UTF-8, or a number not finite or beyond 64 bits.
    """
    for word in words:
        try:
            word.encode()
        except UnicodeEncodeError as error:
            raise ConfigError(
                f"{word!r} is not UTF-8 text: write it so, or rename what it names"
            ) from error
    for name, value in vars(args).items():
        if isinstance(value, float) and not math.isfinite(value):
            raise ConfigError(f"--{name}={value} is not finite: give a number")
        if isinstance(value, int) and abs(value) >= LARGEST:
            raise ConfigError(f"--{name} is beyond 64 bits: choose a smaller number")
        if (
            name == "seed" and not 0 <= value < SEEDS
        ):  # jax would take another, in silence
            raise ConfigError(
                f"--seed={value} is not an unsigned 32-bit number: choose 0 to {SEEDS - 1}"
            )
