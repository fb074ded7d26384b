"""How does a program end, whatever happens in it?

Exit: one sentence on the standard error and a documented exit code. What a user can
mend is known by its class (`errors`), or by what the system reports of a file or of
memory. Everything else is a bug of ours: its traceback goes to a file of its own, so
that the sentence can be read and the traceback be sent.
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

OUT_OF_MEMORY = "RESOURCE_EXHAUSTED"  # in JAX's message for a device
LONGEST = 2000  # characters of a message: names in it may come from anybody's files

# The system's errors after which a retry may work.
TEMPORARY = {
    errno.ENOSPC,
    errno.EDQUOT,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}

# Those after which only another path will work.
PERMANENT = {
    errno.EROFS,
    errno.EACCES,
    errno.EPERM,
    errno.ENOENT,
    errno.EEXIST,
    errno.ENOTDIR,
    errno.EISDIR,
    errno.ENOTEMPTY,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ENXIO,
    errno.ESPIPE,
    errno.EBUSY,
    errno.EXDEV,
    errno.EFBIG,
}


def exit_code_of(program: str, action: Callable[[], None]) -> int:
    """Runs `action` and returns the exit code.

    Whatever it raises becomes one sentence that begins with the name of the program.
    """
    _prepare_streams()
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


def _prepare_streams() -> None:
    """Makes the standard streams such that printing to them never ends a subcommand."""
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # it was closed before the program began
            setattr(sys, name, open(os.devnull, "w"))  # noqa: SIM115
        stream = getattr(sys, name)
        # A printed name may not be UTF-8, and neither may the terminal be.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def explained(error: BaseException) -> tuple[str, int]:
    """What happened and what to do, in one line for a terminal, and the exit code."""
    message, code = _explained(error)
    return shown(message, LONGEST), code


def _explained(error: BaseException) -> tuple[str, int]:
    if isinstance(error, SparsecodError):
        return str(error), error.exit_code
    if isinstance(error, KeyboardInterrupt):
        return "interrupted", INTERRUPTED
    if isinstance(error, OSError) and error.errno in TEMPORARY:
        sentence = f"{_os_reason(error)}: make room or free resources, and run again"
        return sentence, SparsecodError.exit_code
    if isinstance(error, OSError) and _has_unusable_path(error):
        sentence = f"{_os_reason(error)}: correct the path, or choose another place"
        return sentence, ConfigError.exit_code
    if isinstance(error, MemoryError) or OUT_OF_MEMORY in str(error):
        sentence = (
            f"there is too little memory ({_first_line(error)}): "
            "ask for less at a time, or take a larger machine"
        )
        return sentence, SparsecodError.exit_code
    return _bug_report(error), SparsecodError.exit_code


def _has_unusable_path(error: OSError) -> bool:
    return error.errno in PERMANENT and error.filename is not None


def _os_reason(error: OSError) -> str:
    reason = error.strerror or type(error).__name__
    if error.filename is None:
        return reason
    return f"{os.fsdecode(error.filename)} can't be used ({reason})"


def _bug_report(error: BaseException) -> str:
    """One sentence for an error that we did not expect; writes its traceback to a file."""
    summary = f"{type(error).__name__}: {_first_line(error)}"
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
        last_lines = " ".join(trace.splitlines()[-6:])
        return (
            f"{summary}; this is a bug of sparsecod_jax, "
            f"and its trace could not be written: {last_lines}"
        )
    return (
        f"{summary}; this is a bug of sparsecod_jax: "
        f"please report it with its trace, {file.name}"
    )


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    if not lines:
        return "no more is known"
    return lines[0][:500]


def _reader_has_left() -> bool:
    """Whether nobody reads the standard output any more.

    A broken pipe may also be one between this program and another that it started.
    """
    try:
        output = sys.stdout.fileno()
    except (OSError, ValueError, AttributeError):
        return False
    poll = select.poll()
    poll.register(output, select.POLLOUT)
    closed = select.POLLERR | select.POLLHUP
    return any(events & closed for _, events in poll.poll(0))


def _drop_output() -> None:
    """Lets the interpreter's last flush go nowhere; it would complain otherwise."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    os.close(nowhere)
