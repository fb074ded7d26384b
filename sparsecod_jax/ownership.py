"""Whose is this folder? A command writes into a folder only if it is free, or if this package provably made it."""

from etils import epath

from sparsecod_jax.errors import ConfigError


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
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{folder} is a file: choose another {option}, a folder that is new or empty")
    if not ours and any(folder.iterdir()):
        raise ConfigError(f"{folder} holds files but not {kind}: choose another {option}, a folder that is new or empty")
