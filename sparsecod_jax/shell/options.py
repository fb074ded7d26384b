"""Which words of a command line can no subcommand use, whatever the option?

Command-line options: text that is not UTF-8 and numbers out of range are refused here.
"""

import argparse
import math

from sparsecod_jax.errors import ConfigError

LARGEST = 2**63  # of a whole number
SEEDS = 2**32  # how many there are


def check(args: argparse.Namespace, words: list[str]) -> None:
    """Refuses what no subcommand could work with, before any reads its own options.

    Args:
      args: the parsed options.
      words: the command line as it was given.

    Raises:
      ConfigError: a word is not UTF-8, or a number not finite or beyond 64 bits.
    """
    for word in words:
        _check_text(word)
    for name, value in vars(args).items():
        _check_number(name, value)


def _check_text(word: str) -> None:
    try:
        word.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(
            f"{word!r} is not UTF-8 text: write it so, or rename what it names"
        ) from error


def _check_number(name: str, value: object) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"--{name}={value} is not finite: give a number")
    if not isinstance(value, int):
        return
    if abs(value) >= LARGEST:
        raise ConfigError(f"--{name} is beyond 64 bits: choose a smaller number")
    # JAX would use another seed without a word.
    if name == "seed" and not 0 <= value < SEEDS:
        raise ConfigError(
            f"--seed={value} is not an unsigned 32-bit number: choose 0 to {SEEDS - 1}"
        )
