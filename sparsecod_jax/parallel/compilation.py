"""Where are compiled programs kept, so that the next start need not compile?

Compilation cache: one folder per user, for all runs.
"""

import os

import jax
from etils import epath


def keep_programs() -> None:
    """Has JAX keep compiled programs in the user's cache folder.

    A folder in JAX_COMPILATION_CACHE_DIR is kept to. Several processes on GPUs choose their
    kernels together while they compile, and would wait for ever for one that found its program
    in a folder of its own: they keep programs only in a folder that is set, which all share.
    """
    is_set = jax.config.values["jax_compilation_cache_dir"] is not None
    if is_set or (jax.process_count() > 1 and jax.default_backend() == "gpu"):
        return
    caches = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    folder = os.fspath(caches / "sparsecod_jax" / "xla")
    jax.config.update("jax_compilation_cache_dir", folder)
