"""Whose is this folder? A command writes into a folder only if it is free, or if this package provably made it."""

import os

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.files import UNFINISHED, is_remote


def check_free_or_ours(folder: epath.Path, *, ours: bool, option: str, kind: str) -> None:
    """Refuses a place that holds somebody else's files, before anything is written.

    Args:
      folder: the place that a command is about to fill.
      ours: whether a record in it proves that this package made it.
      option: by which the user named it, such as --workdir.
      kind: what the command makes, such as "a run".

    Raises:
      ConfigError: `folder` is a file, or it is neither absent, nor empty, nor ours.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose another {option}, a folder that is new or empty")
    if not ours and names_in(folder):
        raise ConfigError(f"{folder} holds files but not {kind}: choose another {option}, a folder that is new or empty")


def names_in(folder: epath.Path) -> set[str]:
    """What lies in a folder, which may be absent, apart from what a killed process of ours left half written."""
    if is_remote(folder):
        names = {path.name for path in folder.iterdir()} if folder.exists() else set()
    else:
        names = set(os.listdir(folder)) if folder.is_dir() else set()  # epath leaves out names that end with ~
    return {name for name in names if not name.startswith(UNFINISHED)}
