"""Where are compiled programs kept, so that the next start need not compile?"""

import os

import jax
from etils import epath


def keep_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder, if it was not told another one (JAX_COMPILATION_CACHE_DIR).

    Several processes on GPUs choose their kernels together while they compile, and would wait for ever for one that found its program
    in a folder of its own; they keep programs only where they are told to, in a folder that all share.
    """
    told = jax.config.values["jax_compilation_cache_dir"] is not None
    if told or (jax.process_count() > 1 and jax.default_backend() == "gpu"):
        return
    caches = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    jax.config.update(
        "jax_compilation_cache_dir", os.fspath(caches / "sparsecod_jax" / "xla")
    )
