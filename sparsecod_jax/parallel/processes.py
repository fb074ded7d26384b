"""Which process is this, and what did the first one decide?

Processes: a run may be several, which compute one program on parts of its data. What concerns
the run as a whole, such as its directory, is done by the first process, and all learn how it
went: they continue together, or leave with the same message and exit code. With a single process
every function here is the plain call.
"""

import contextlib
import datetime
import json
import os
import time
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NoReturn, ParamSpec, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.shell import ending
from sparsecod_jax.shell.stopping import STOP, end_within, write_stderr

P = ParamSpec("P")
T = TypeVar("T")

# All times are seconds. The hosts of a large slice may start many minutes apart: 300 have
# ended such runs.
INITIALIZATION_TIMEOUT = 1800

# Silence after which a process counts as dead and ends the others; less has ended slow hosts.
HEARTBEAT_TIMEOUT = 100

# How long a process that leaves waits for the others, which may be waiting for it.
SHUTDOWN_TIMEOUT = 60

# How long the first process waits when it fails, as its end is the end of all: the others may
# have failed alike, and print their messages meanwhile.
ALIKE = 5

# How long a process that failed may take to end: Orbax's threads may wait for minutes for a
# save that can't be made.
LEAVING = 20

# Variables by which a launcher tells each of several processes how many they are, or which one
# it is, even where JAX can't tell.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")
INDICES = ("JOB_COMPLETION_INDEX",)

ADVICE = (
    "give --coordinator, --process_count and --process_index,"
    " or --process_count=1 to train alone"
)


@contextlib.contextmanager
def connected(
    coordinator: str | None,
    count: int | None,
    index: int | None,
    *,
    owns_process: bool = False,
) -> Iterator[None]:
    """Joins the processes of a run while the context lasts; before anything else uses jax.

    Args:
      coordinator: HOST:PORT where the first process listens.
      count: how many processes there are; 1, given alone, trains alone whatever the environment
        says.
      index: which one this is. With none of the three, JAX finds out: in Slurm's srun, on GKE,
        on TPU VMs.
      owns_process: whether an error may end the whole process, where a library or the other
        processes would hold it up.

    Raises:
      ConfigError: only some of the three are given, or the environment tells only in part which
        process this is.
      SparsecodError: the others can't be found or reached, at least not now.
    """
    _connect(coordinator, count, index)
    several = jax.distributed.is_initialized()
    if several:
        STOP.forward()
    try:
        yield
    except BaseException as error:
        if not owns_process:
            raise
        # An error `of_all` was raised on every process, so that all leave in order. Any other
        # leaves processes in a collective operation that will never be complete.
        if several and not getattr(error, "of_all", False):
            _leave_alone(error)
        limit = LEAVING
        if several:
            limit += SHUTDOWN_TIMEOUT
        end_within(limit, getattr(error, "exit_code", SparsecodError.exit_code))
        raise


def _leave_alone(error: BaseException) -> NoReturn:
    """Ends this process at once.

    An orderly end would wait minutes for the others, which wait for this process.
    """
    message, code = ending.explained(error)
    # A collective operation fails on every process when one of them dies; the cause is in the
    # output of that one. Only a lack of memory is explained here.
    is_from_jax = isinstance(error, jax.errors.JaxRuntimeError)
    if is_from_jax and ending.OUT_OF_MEMORY not in str(error):
        message = (
            f"computing with the others failed ({_first_line(error)}):"
            " what they say may tell why; run the same command to resume"
        )
    write_stderr(f"process {jax.process_index()}: {message}")
    if is_first():
        time.sleep(ALIKE)
    os._exit(code)


def _connect(coordinator: str | None, count: int | None, index: int | None) -> None:
    """Joins the other processes; does nothing where there is one alone."""
    if (coordinator, count, index) == (None, 1, None):
        return
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ConfigError(
            "--coordinator, --process_count and --process_index belong together:"
            f" {ADVICE}"
        )
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            # JAX would ask the cluster first, even if all is given.
            cluster_detection_method="deactivate" if all(given) else None,
            initialization_timeout=INITIALIZATION_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except ValueError as error:
        # With these words JAX says that it found no cluster, so this process may be alone.
        if not str(error).startswith("coordinator_address should be defined"):
            raise ConfigError(
                f"JAX can't join the other processes ({_first_line(error)}): {ADVICE}"
            ) from error
        check_alone(
            "JAX can't tell which: start it with srun under Slurm,"
            f" with the extra jax[k8s] on Kubernetes, or {ADVICE}"
        )
    except RuntimeError as error:
        raise SparsecodError(
            f"joining the other processes failed ({_first_line(error)}):"
            f" try again, or {ADVICE}"
        ) from error


def check_alone(advice: str) -> None:
    """Refuses to run as many copies as there are processes.

    Raises:
      ConfigError: the environment tells of several processes; ends with `advice`.
    """
    signs = [name for name in COUNTS if os.environ.get(name, "1") != "1"]
    signs += [name for name in INDICES if name in os.environ]
    if signs:
        sign = signs[0]
        raise ConfigError(
            f"{sign}={os.environ[sign]} says that this is one of several processes,"
            f" and {advice}"
        )


def is_first() -> bool:
    """Whether this process writes for all."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Prints once, however many processes there are."""
    if is_first():
        print(text, flush=True)


def log_phase(text: str) -> None:
    """Logs what is about to happen, so that a log shows where a job hangs."""
    print_once(f"[{datetime.datetime.now():%H:%M:%S}] {text}")


def run_on_first(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `function` on the first process alone, with its arguments there, for every process.

    Returns:
      On every process what `function` returned, which must be plain JSON.

    Raises:
      SparsecodError: on every process, of the class and with the message that `function` raised.
    """
    if jax.process_count() == 1:
        return function(*args, **kwargs)
    result, error = None, None
    if is_first():
        result, error = _try(function, *args, **kwargs)
    # Every process gets here, also when `function` failed: were the first to raise at once,
    # the others would wait for its message for ever.
    return _unwrap(_broadcast(json.dumps([result, error])))


def run_on_all(function: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> T:
    """Calls `function`, which may not wait for other processes, on every process.

    Returns:
      What `function` returned on this process, once it has succeeded on all.

    Raises:
      SparsecodError: on every process, of the class and with the message of the first that failed.
    """
    if jax.process_count() == 1:
        return function(*args, **kwargs)
    result, error = _try(function, *args, **kwargs)
    # All learn first who failed, so that all know which process broadcasts its error next.
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if failed.any():
        first_failed = int(failed.argmax())
        _unwrap(_broadcast(json.dumps([None, error]), source=first_failed))
    return result


def _try(function: Callable[..., Any], *args, **kwargs) -> tuple[Any, list[str] | None]:
    """What `function` returned, or the class and message of what it raised."""
    try:
        return function(*args, **kwargs), None
    except SparsecodError as error:
        return None, [type(error).__name__, str(error)]
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {_first_line(error)}"
        message = f"process {jax.process_index()} failed ({reason})"
        return None, [SparsecodError.__name__, message]


def _unwrap(text: str) -> Any:
    """The result in a broadcast text, or raises the error in it, on every process."""
    result, error = json.loads(text)
    if error is None:
        return result
    name, message = error
    classes = (SparsecodError, *SparsecodError.__subclasses__())
    by_name = {known.__name__: known for known in classes}
    raised = by_name[name](message)
    raised.of_all = True  # `connected` lets all processes leave in order
    raise raised


def _broadcast(text: str, source: int = 0) -> str:
    """The text of process `source`, on every process."""
    is_source = jax.process_index() == source
    encoded = np.frombuffer(text.encode(), np.uint8)
    # All processes must call with arrays of one shape, so the size goes first.
    size = int(
        multihost_utils.broadcast_one_to_all(
            np.uint32(encoded.size), is_source=is_source
        )
    )
    # Padded to a power of two, as every size is compiled.
    padded = np.zeros(1 << size.bit_length(), np.uint8)
    if is_source:
        padded[:size] = encoded
    received = multihost_utils.broadcast_one_to_all(padded, is_source=is_source)
    return received[:size].tobytes().decode()


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0] if lines else ""
