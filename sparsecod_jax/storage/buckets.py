"""Can that bucket be reached from here? Asked once, before the libraries that would try again for a minute."""

import logging
import os
import socket
import threading
import urllib.parse

import fsspec

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.storage import files

GOOGLE = "https://storage.googleapis.com"
LIMIT = 12.0  # seconds for an answer
LOGIN = "log in with `gcloud auth application-default login`, or run where a service account is at hand"


def check_named(*options: object) -> None:
    """`check_reachable` for those of some options that are gs:// places; others are left to whoever reads them."""
    check_reachable(
        *(
            option
            for option in options
            if isinstance(option, str) and option.startswith("gs://")
        )
    )


def check_reachable(*places: str) -> None:
    """Asks the store about each of these gs:// places.

    Raises:
      ConfigError: the bucket is not there, or is closed to whoever runs this.
      SparsecodError: the store does not answer, at least not now.
    """
    for place in dict.fromkeys(places):
        _check(os.fspath(files.absolute(place)))


def _check(path: str) -> None:
    errors: list[BaseException] = []

    def ask():
        try:
            _connect()
            fsspec.filesystem("gs").exists(path)
        except BaseException as error:
            errors.append(error)

    logging.getLogger("gcsfs").setLevel(
        logging.CRITICAL
    )  # it logs each attempt with its trace
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(LIMIT)
    if thread.is_alive():
        raise SparsecodError(
            f"{path} can't be reached: no answer in {LIMIT:.0f} s, check the network and try again"
        )
    if errors:
        raise _explained(path, errors[0]) from errors[0]


def _connect() -> None:
    """Knocks at the store's door, which fails at once where there is no network."""
    address = urllib.parse.urlsplit(os.environ.get("STORAGE_EMULATOR_HOST") or GOOGLE)
    port = address.port or {"http": 80, "https": 443}[address.scheme]
    socket.create_connection((address.hostname, port), timeout=LIMIT / 2).close()


def _explained(path: str, error: BaseException) -> SparsecodError:
    reason = (
        f"{type(error).__name__}: {next(iter(str(error).strip().splitlines()), '')}"[
            :300
        ]
    )
    refused = getattr(error, "code", None) in (401, 403) or str(error).startswith(
        "Forbidden"
    )  # as gcsfs has it
    if refused or type(error).__module__.startswith("google.auth"):
        return ConfigError(
            f"{path} can't be used with the credentials found here ({reason}): {LOGIN}"
        )
    return SparsecodError(
        f"{path} can't be reached ({reason}): check the network and the bucket's name, and try again"
    )
