"""How does a program end, whatever happens in it? With one sentence on the standard error and a documented exit code.

What a user can mend is known by its class (`errors`), or by what the system says of a file or of memory. All else is a bug of ours: its
trace goes to a file of its own, so that the sentence can be read and the trace be sent.
"""

import contextlib
import errno
import os
import select
import sys
import tempfile
import traceback
from collections.abc import Callable

from sparsecod_jax.errors import INTERRUPTED, PIPE_CLOSED, ConfigError, SparsecodError
from sparsecod_jax.shell.shown import shown

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # as jax has it for devices
LONGEST = 2000  # characters of a message: names in it may come from anybody's files

# What the system says when it may work later, and when only another place will do.
FOR_NOW = (
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
)
FOR_GOOD = (
    *(
        errno.EROFS,
        errno.EACCES,
        errno.EPERM,
        errno.ENOENT,
        errno.EEXIST,
        errno.ENOTDIR,
        errno.EISDIR,
        errno.ENOTEMPTY,
    ),
    *(
        errno.ENAMETOOLONG,
        errno.ELOOP,
        errno.ENXIO,
        errno.ESPIPE,
        errno.EBUSY,
        errno.EXDEV,
        errno.EFBIG,
    ),
)


def exit_code_of(program: str, action: Callable[[], None]) -> int:
    """Runs `action` and returns the exit code; whatever it raises becomes one sentence that begins with the name of the program."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the program began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if hasattr(
            stream, "reconfigure"
        ):  # a name that is no UTF-8, or a terminal that is not, must not end a verb
            stream.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
    try:
        action()
        sys.stdout.flush()
        return 0
    except SystemExit:
        raise
    except BaseException as error:
        if isinstance(error, BrokenPipeError) and _reader_has_left():
            _drop_output()
            return PIPE_CLOSED
        message, code = explained(error)
        with contextlib.suppress(OSError):  # nobody may be there to read it
            print(f"{program}: {message}", file=sys.stderr, flush=True)
        return code


def explained(error: BaseException) -> tuple[str, int]:
    """What happened and what to do, in one line for a terminal, and the exit code."""
    message, code = _explained(error)
    return shown(message, LONGEST), code


def _explained(error: BaseException) -> tuple[str, int]:
    if isinstance(error, SparsecodError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, OSError) and error.errno in FOR_NOW:
        return (
            f"{_of_system(error)}: make room or free resources, and run again",
            SparsecodError.exit_code,
        )
    if (
        isinstance(error, OSError)
        and error.errno in FOR_GOOD
        and error.filename is not None
    ):
        return (
            f"{_of_system(error)}: correct the path, or choose another place",
            ConfigError.exit_code,
        )
    if isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error):
        return (
            f"there is too little memory ({_first_line(error)}): ask for less at a time, or take a larger machine",
            SparsecodError.exit_code,
        )
    return _of_bug(error), SparsecodError.exit_code


def _of_system(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    return (
        f"{os.fsdecode(error.filename)} can't be used ({reason})"
        if error.filename is not None
        else reason
    )


def _of_bug(error: BaseException) -> str:
    gist = f"{type(error).__name__}: {_first_line(error)}"
    trace = "".join(traceback.format_exception(error))
    try:
        with tempfile.NamedTemporaryFile(
            "w",
            prefix="sparsecod-bug-",
            suffix=".txt",
            delete=False,
            errors="backslashreplace",
        ) as file:
            file.write(trace)
    except OSError:
        return f"{gist}; this is a bug of sparsecod_jax, and its trace could not be written: {' '.join(trace.splitlines()[-6:])}"
    return f"{gist}; this is a bug of sparsecod_jax: please report it with its trace, {file.name}"


def _first_line(error: BaseException) -> str:
    return next(iter(str(error).strip().splitlines()), "no more is known")[:500]


def _reader_has_left() -> bool:
    """Whether it is the standard output that nobody reads any more, and not a pipe of ours."""
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    return any(events & (select.POLLERR | select.POLLHUP) for _, events in poll.poll(0))


def _drop_output() -> None:
    """Lets the interpreter flush into nothing as it ends; it would complain otherwise."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, sys.stdout.fileno())
    os.close(nothing)
