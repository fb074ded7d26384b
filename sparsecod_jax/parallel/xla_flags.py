"""Which flags does XLA get?

XLA flags: they are added to XLA_FLAGS before jax starts its devices. Flags that a user has set
win. A flag that XLA does not know ends the process from within C++, so one that few releases
have is added for those alone; `self_check` looks whether others compute right. Where XLA_FLAGS
names a file with flags, nothing is changed.
"""

import importlib.metadata
import os

LIBRARY_PRODUCTS = "--xla_gpu_enable_triton_gemm=false"
# What these releases of jaxlib leave to YNNPACK by default, without reductions.
WITH_YNNPACK = ("0.10.", "0.11.")
OWN_REDUCTIONS = (
    "--xla_cpu_experimental_ynn_fusion_type=individual_dot,individual_convolution"
)


def leave_products_to_libraries() -> None:
    """Has XLA multiply matrices on NVIDIA's GPUs by the libraries for them.

    It also has kernels of its own. In float32 to try those takes longer than many a score, and to
    take them untried is slow.
    """
    _add(LIBRARY_PRODUCTS)


def compute_own_reductions() -> None:
    """Has XLA compute sums on CPUs itself instead of by YNNPACK, whose results can be wrong.

    With jaxlib 0.10.2 the gradient of RMSNorm, pulled back for several cotangents at once, is wrong
    in all but the first of them from 512 positions of width 64 on (docs/compiler_fault.md).
    """
    if importlib.metadata.version("jaxlib").startswith(WITH_YNNPACK):
        _add(OWN_REDUCTIONS)


def _add(flag: str) -> None:
    # The flags that a user has set come last, so that they win.
    flags = os.environ.get("XLA_FLAGS", "").strip()
    is_list = not flags or flags.startswith("-")
    if is_list and flag not in flags.split():
        os.environ["XLA_FLAGS"] = f"{flag} {flags}".strip()
