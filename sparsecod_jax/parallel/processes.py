"""Which process is this, and what did the first one decide?

A run may be several processes, which compute one program on parts of its data. What concerns the run as a whole, such as its directory, is
done by the first process, and all learn how it went: they go on together, or leave with the same sentence and exit code. With a single
process every function here is the plain call.
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

INITIALIZATION_TIMEOUT = 1800  # seconds; the hosts of a large slice may start many minutes apart, 300 have ended such runs
SHUTDOWN_TIMEOUT = 60  # seconds that a process which leaves waits for the others; they may be waiting for it
ALIKE = 5  # seconds that the first waits when it fails, as its end is the end of all: they may have failed alike, and have their say
LEAVING = 20  # seconds until a process ends that failed; Orbax's threads may wait for minutes for a save that can't be made
HEARTBEAT_TIMEOUT = 100  # seconds of silence until a process counts as dead and ends the others; less has ended slow hosts

# What a launcher tells each of several processes, even where JAX can't tell from it which one it is: how many they are, or which.
COUNTS = ("SLURM_NTASKS", "OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "WORLD_SIZE")
INDICES = ("JOB_COMPLETION_INDEX",)

ADVICE = "give --coordinator, --process_count and --process_index, or --process_count=1 to train alone"


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
      count: how many processes there are; 1, given alone, trains alone whatever the environment says.
      index: which one this is. With none of the three, JAX finds out: in Slurm's srun, on GKE, on TPU VMs.
      owns_process: whether an error may end the whole process, where a library or the other processes would hold it up.

    Raises:
      ConfigError: only some of the three are given, or the environment says only in part which process this is.
      SparsecodError: the others can't be found or reached, at least not now.
    """
    _connect(coordinator, count, index)
    several = jax.distributed.is_initialized()
    if several:
        STOP.forward()
    try:
        yield
    except BaseException as error:
        if owns_process and several and not getattr(error, "of_all", False):
            _leave_alone(error)
        if owns_process:
            end_within(
                LEAVING + several * SHUTDOWN_TIMEOUT,
                getattr(error, "exit_code", SparsecodError.exit_code),
            )
        raise


def _leave_alone(error: BaseException) -> NoReturn:
    """At once: an orderly end would wait minutes for the others, which wait for this process."""
    message, code = ending.explained(error)
    if isinstance(
        error, jax.errors.JaxRuntimeError
    ) and ending.OUT_OF_MEMORY not in str(error):
        message = f"computing with the others failed ({_first_line(error)}): what they say may tell why; run the same command to go on"
    write_stderr(f"process {jax.process_index()}: {message}")
    if is_first():
        time.sleep(ALIKE)
    os._exit(code)


def _connect(coordinator: str | None, count: int | None, index: int | None) -> None:
    if (coordinator, count, index) == (None, 1, None):
        return
    given = [value is not None for value in (coordinator, count, index)]
    if any(given) and not all(given):
        raise ConfigError(
            f"--coordinator, --process_count and --process_index belong together: {ADVICE}"
        )
    try:
        jax.distributed.initialize(
            coordinator,
            count,
            index,
            cluster_detection_method="deactivate" if all(given) else None,
            initialization_timeout=INITIALIZATION_TIMEOUT,
            heartbeat_timeout_seconds=HEARTBEAT_TIMEOUT,
            shutdown_timeout_seconds=SHUTDOWN_TIMEOUT,
        )
    except ValueError as error:
        if not str(error).startswith(
            "coordinator_address should be defined"
        ):  # JAX's way to say that it found nothing
            raise ConfigError(
                f"JAX can't join the other processes ({_first_line(error)}): {ADVICE}"
            ) from error
        check_alone(
            f"JAX can't tell which: start it with srun under Slurm, with the extra jax[k8s] on Kubernetes, or {ADVICE}"
        )
    except RuntimeError as error:
        raise SparsecodError(
            f"joining the other processes failed ({_first_line(error)}): try again, or {ADVICE}"
        ) from error


def check_alone(advice: str) -> None:
    """Refuses to run as many copies as there are processes: raises ConfigError with the advice."""
    signs = [name for name in COUNTS if os.environ.get(name, "1") != "1"] + [
        name for name in INDICES if name in os.environ
    ]
    if signs:
        raise ConfigError(
            f"{signs[0]}={os.environ[signs[0]]} says that this is one of several processes, and {advice}"
        )


def is_first() -> bool:
    """Whether this process writes for all."""
    return jax.process_index() == 0


def print_once(text: str) -> None:
    """Prints once, however many processes there are."""
    if is_first():
        print(text, flush=True)


def log_phase(text: str) -> None:
    """Says what is about to happen, so that a log tells where a job hangs."""
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
    result, error = _try(function, *args, **kwargs) if is_first() else (None, None)
    return _unwrap(_tell_all(json.dumps([result, error])))


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
    failed = multihost_utils.process_allgather(np.array(error is not None))
    if failed.any():
        _unwrap(_tell_all(json.dumps([None, error]), source=int(failed.argmax())))
    return result


def _try(function: Callable[..., Any], *args, **kwargs) -> tuple[Any, list[str] | None]:
    """What `function` returned, or the class and message of what it raised."""
    try:
        return function(*args, **kwargs), None
    except SparsecodError as error:
        return None, [type(error).__name__, str(error)]
    except Exception as error:
        traceback.print_exc()
        return None, [
            SparsecodError.__name__,
            f"process {jax.process_index()} failed ({type(error).__name__}: {_first_line(error)})",
        ]


def _unwrap(told: str) -> Any:
    result, error = json.loads(told)
    if error is not None:
        classes = {
            known.__name__: known
            for known in (SparsecodError, *SparsecodError.__subclasses__())
        }
        raised = classes[error[0]](error[1])
        raised.of_all = True
        raise raised
    return result


def _tell_all(text: str, source: int = 0) -> str:
    """The text of process `source`, on every process."""
    speaking = jax.process_index() == source
    encoded = np.frombuffer(text.encode(), np.uint8)
    size = int(
        multihost_utils.broadcast_one_to_all(
            np.uint32(encoded.size), is_source=speaking
        )
    )
    padded = np.zeros(
        1 << size.bit_length(), np.uint8
    )  # few sizes, as each is compiled
    if speaking:
        padded[:size] = encoded
    return (
        multihost_utils.broadcast_one_to_all(padded, is_source=speaking)[:size]
        .tobytes()
        .decode()
    )


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "")
