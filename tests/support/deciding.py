"""What two processes decide together, as a program of two: python deciding.py COORDINATOR INDEX.

Prints one JSON object, then process 1 fails by itself while process 0 waits for it.
"""

import json
import sys

from sparsecod_jax.errors import ConfigError, Fenced, SparsecodError
from sparsecod_jax.parallel.processes import (
    connected,
    is_first,
    log_phase,
    print_once,
    run_on_all,
    run_on_first,
)


def outcome(run, *args, **kwargs):
    """What a call returned, or the class and message of what it raised."""
    try:
        return run(*args, **kwargs)
    except SparsecodError as error:
        return [type(error).__name__, str(error)]


def fail(error: Exception, *, unless: bool = False) -> None:
    if not unless:
        raise error


def nothing() -> None:
    pass


def rows(sizes) -> list[int]:
    import jax
    import numpy as np

    from sparsecod_jax.data.pipeline import local_rows
    from sparsecod_jax.parallel.sharding import MESH_AXES, batch_sharding

    mesh = jax.sharding.Mesh(np.array(jax.devices()).reshape(sizes), MESH_AXES)
    return local_rows(batch_sharding(mesh), 8).tolist()


def decide(index: int) -> dict:
    return {
        "first": is_first(),
        "decided": run_on_first(dict, who=index, text="ü" * 3000),
        "nothing": run_on_first(nothing),
        "fenced": outcome(run_on_first, fail, Fenced(f"said by {index}")),
        "surprised": outcome(run_on_first, fail, OSError(f"disk {index} is full")),
        "own": outcome(run_on_all, "of {}".format, index),
        "one failed": outcome(
            run_on_all, fail, Fenced(f"said by {index}"), unless=index == 0
        ),
        "both failed": outcome(run_on_all, fail, Fenced(f"said by {index}")),
        "data 4": rows((4, 1, 1, 1)),
        "expert 2, tensor 2": rows((1, 1, 2, 2)),
        "tensor 4": rows((1, 1, 1, 4)),
    }


if __name__ == "__main__":
    me = int(sys.argv[2])
    with connected(sys.argv[1], 2, me, owns_process=True):
        print_once("said once")
        log_phase("noted once")
        print(json.dumps(decide(me)), flush=True)
        if me == 1:
            raise ConfigError("process 1 alone: mend it")
        run_on_first(nothing)
        run_on_first(nothing)
