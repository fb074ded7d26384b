"""How does XLA compile, and where are compiled programs kept, so that the next start need not compile?"""

import os

import jax
from etils import epath


def leave_products_to_libraries() -> None:
    """Has XLA multiply matrices on NVIDIA's GPUs by the libraries for them; to be called before jax starts its devices.

    It also has kernels of its own. In float32 to try those takes longer than many a score, and to take them untried is slow. Flags in
    XLA_FLAGS win; where that is the name of a file with flags, nothing is changed.
    """
    told = os.environ.get("XLA_FLAGS", "").strip()
    if not told or told.startswith("-"):
        os.environ["XLA_FLAGS"] = f"--xla_gpu_enable_triton_gemm=false {told}"


def keep_programs() -> None:
    """Has JAX keep what it compiles in the user's cache folder, if it was not told another one (JAX_COMPILATION_CACHE_DIR).

    Several processes on GPUs choose their kernels together while they compile, and would wait for ever for one that found its program
    in a folder of its own; they keep programs only where they are told to, in a folder that all share.
    """
    told = jax.config.values["jax_compilation_cache_dir"] is not None
    if told or (jax.process_count() > 1 and jax.default_backend() == "gpu"):
        return
    caches = epath.Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    jax.config.update("jax_compilation_cache_dir", os.fspath(caches / "sparsecod_jax" / "xla"))
