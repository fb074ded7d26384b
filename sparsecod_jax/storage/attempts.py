"""Which process may write a run directory?

Attempts: a run directory belongs to its newest attempt. On a local file system a second
live process is turned away by a lock that dies with its holder. Everywhere, an attempt
that notices a newer one stops before its next commit. Object stores have no such lock:
there the process that starts last takes over. An attempt knows its own record by a
random token, so it also stops if the directory was removed and made anew.
"""

import contextlib
import json
import secrets
import time
from collections.abc import Iterator

from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.storage import files
from sparsecod_jax.storage.ownership import locked, this_process
from sparsecod_jax.storage.rundir import RunDir


class Attempt:
    """One process's claim on a run directory."""

    def __init__(self, run: RunDir, number: int, token: str = ""):
        self.run = run
        self.number = number
        self.token = token

    def check_shared(self) -> None:
        """Checks that this process has the directory in which the claim was made.

        Raises:
          ConfigError: under the same name it has another one.
        """
        if not self._is_there():
            raise ConfigError(
                f"attempt {self.number} is not in {self.run.path} as seen here: "
                "give a --workdir that all processes share"
            )

    def check_still_owner(self) -> None:
        """Checks that this attempt may write; to be called before every commit.

        Raises:
          Fenced: a newer attempt, or another directory, has replaced this one.
        """
        newest = self.run.newest_attempt()
        if newest > self.number:
            raise Fenced(
                f"attempt {newest} took over {self.run.path}: "
                f"this attempt ({self.number}) stops before writing more"
            )
        if not self._is_there():
            raise Fenced(
                f"{self.run.path} was removed or replaced under attempt {self.number}: "
                "it stops before writing more"
            )

    def _is_there(self) -> bool:
        path = self.run.attempt(self.number)
        # Any other error is the disk's, which is no reason to stop for good.
        try:
            record = json.loads(path.read_bytes())
        except (FileNotFoundError, ValueError):
            record = {}
        return isinstance(record, dict) and record.get("token", "") == self.token


def check_free(run: RunDir) -> None:
    """Raises Fenced where another process is at work in the run directory now."""
    if run.path.is_dir():
        with locked(run.path):
            pass


@contextlib.contextmanager
def claim(run: RunDir) -> Iterator[Attempt]:
    """Makes this process the owner of the run directory while the context lasts.

    Raises:
      ConfigError: the directory can't be made.
      Fenced: another live process owns it; nothing was written.
    """
    files.make_folder(run.path)
    with locked(run.path):
        yield _new_attempt(run)


def _new_attempt(run: RunDir) -> Attempt:
    """A new attempt, with the first number that is free.

    Where there is no lock two processes may try the same number. One of them creates the
    file; the other takes the next number, and with it the run.
    """
    files.make_folder(run.attempts)
    token = secrets.token_hex(8)
    record = {**this_process(), "time": time.time(), "token": token}
    content = json.dumps(record).encode()
    number = run.newest_attempt()
    while True:
        number += 1
        with contextlib.suppress(FileExistsError):
            files.create(run.attempt(number), content)
            return Attempt(run, number, token)
