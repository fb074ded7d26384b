"""What does one host of a pod do for a run? Commands of a host: run one after the other.

The first runs on every host, the others on the first host alone. Engines start
`python -P -m sparsecod_jax.launching.host COMMAND [--then COMMAND]...` on every host; a
command is the words of its argv. SPARSECOD_SLICE and SPARSECOD_HOST number the hosts.
"""

import os
import resource
import signal
import subprocess
import sys
from collections.abc import Sequence

from sparsecod_jax.errors import ConfigError, Preempted

THEN = "--then"
HOST_NUMBERS = ("SPARSECOD_SLICE", "SPARSECOD_HOST")
# Bytes that a TPU's driver may pin; without privileges a container starts with far less.
LOCKED_MEMORY = 64 * 2**30

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
# Keeps libtpu from waiting for the other hosts of a slice.
ONE_HOST_OF_SEVERAL = (
    "TPU_PROCESS_BOUNDS=1,1,1",
    "TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1",
)


def argv(commands: Sequence[Sequence[str]], *, several_tpu_hosts: bool) -> list[str]:
    """The command line with which every host is started.

    Raises:
      ConfigError: a word would be read as the end of its command.
    """
    if any(THEN in command for command in commands):
        raise ConfigError(
            f"a command has the word {THEN}, which separates commands:"
            " choose another value"
        )
    everywhere, *alone = commands
    words = ["python", "-P", "-m", "sparsecod_jax.launching.host", *everywhere]
    # What only the first host runs must not wait for the others.
    env = ["env", *(f"--unset={name}" for name in OF_SEVERAL)]
    if several_tpu_hosts:
        env += ONE_HOST_OF_SEVERAL
    for command in alone:
        words += [THEN, *env, *command]
    return words


def main(words: list[str]) -> int:
    """Runs the commands of this host; returns the exit code of the first that fails."""
    allow_locked_memory()
    everywhere, *alone = _split(words)
    commands = [everywhere]
    if all(os.environ.get(name, "0") == "0" for name in HOST_NUMBERS):
        commands += alone
    for command in commands:
        code = _run(command)
        if code:
            return code
    return 0


def allow_locked_memory() -> None:
    """Raises the limit where this process may; where it may not, it is root's affair."""
    try:
        resource.setrlimit(resource.RLIMIT_MEMLOCK, (LOCKED_MEMORY, LOCKED_MEMORY))
    except (ValueError, OSError) as error:
        message = f"the limit of locked memory stays as it is ({error})"
        print(message, file=sys.stderr, flush=True)


def _split(words: list[str]) -> list[list[str]]:
    commands: list[list[str]] = [[]]
    for word in words:
        if word == THEN:
            commands.append([])
        else:
            commands[-1].append(word)
    return commands


def _run(command: list[str]) -> int:
    """The exit code of a command, to which SIGTERM is passed on.

    As a container's first process this one alone receives it.
    """
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
        # It saves as it runs, and had nothing more to report.
        return Preempted.exit_code
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
