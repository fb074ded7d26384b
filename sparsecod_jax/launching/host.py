"""What does one host of a pod do for a run? Its commands, one after the other: the first on every host, the others on the first host alone.

The engines start `python -P -m sparsecod_jax.launching.host COMMAND [--then COMMAND]...` on every host; a command is the words of its argv.
SPARSECOD_SLICE and SPARSECOD_HOST say which host this is.
"""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence

from sparsecod_jax.errors import ConfigError, Preempted

THEN = "--then"
PLACE = ("SPARSECOD_SLICE", "SPARSECOD_HOST")
LOCKED_MEMORY = (
    64 * 2**30
)  # bytes that a TPU's driver may pin; without privileges a container starts with far less

# What tells a process that it is one of several, on every kind of host.
OF_SEVERAL = (
    "JOB_COMPLETION_INDEX",
    "TPU_WORKER_HOSTNAMES",
    "TPU_WORKER_ID",
    "TPU_PROCESS_ADDRESSES",
    "MEGASCALE_COORDINATOR_ADDRESS",
    "MEGASCALE_NUM_SLICES",
    "MEGASCALE_SLICE_ID",
)
ONE_HOST_OF_SEVERAL = (
    "TPU_PROCESS_BOUNDS=1,1,1",
    "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1",
)  # tells libtpu not to wait for the others


def argv(commands: Sequence[Sequence[str]], *, several_tpu_hosts: bool) -> list[str]:
    """What is started on every host.

    Raises:
      ConfigError: a word would be read as the end of its command.
    """
    if any(word == THEN for command in commands for word in command):
        raise ConfigError(
            f"a command has the word {THEN}, which separates commands: choose another value"
        )
    words = ["python", "-P", "-m", "sparsecod_jax.launching.host", *commands[0]]
    bounds = ONE_HOST_OF_SEVERAL if several_tpu_hosts else ()
    for command in commands[1:]:
        words += [
            THEN,
            "env",
            *(f"--unset={name}" for name in OF_SEVERAL),
            *bounds,
            *command,
        ]
    return words


def main(words: list[str]) -> int:
    """Runs the commands of this host, and returns the exit code of the first that fails."""
    allow_locked_memory()
    everywhere, *alone = _split(words)
    is_first = all(os.environ.get(name, "0") == "0" for name in PLACE)
    for command in [everywhere, *(alone if is_first else [])]:
        code = _run(command)
        if code:
            return code
    return 0


def allow_locked_memory() -> None:
    """Raises the limit where this process may; where it may not, it is root's affair."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (LOCKED_MEMORY, LOCKED_MEMORY))
    except (ValueError, OSError) as error:
        print(
            f"the limit of locked memory stays as it is ({error})",
            file=sys.stderr,
            flush=True,
        )


def _split(words: list[str]) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    for word in words:
        if word == THEN:
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def _run(command: list[str]) -> int:
    """The exit code of a command, which is told of SIGTERM: as a container's first process this one alone hears of it."""
    stopped = False

    def stop(number, frame):
        nonlocal stopped
        stopped = True
        process.terminate()

    process = subprocess.Popen(command)
    before = signal.signal(signal.SIGTERM, stop)
    code = process.wait()
    signal.signal(signal.SIGTERM, before)
    if stopped and code == -signal.SIGTERM:
        return Preempted.exit_code  # it saves as it goes, and had no more to say
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
