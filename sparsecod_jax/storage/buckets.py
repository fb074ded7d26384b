"""Can that bucket be reached from here?

Buckets: each is tried once, before libraries that would retry for a minute.
"""

import logging
import os
import socket
import threading
import urllib.parse

import fsspec

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.storage import files

GOOGLE = "https://storage.googleapis.com"
PORTS = {"http": 80, "https": 443}
LIMIT = 12.0  # seconds for an answer
LOGIN = (
    "log in with `gcloud auth application-default login`, "
    "or run where a service account is at hand"
)


def check_named(*options: object) -> None:
    """`check_reachable` for those options that are gs:// paths; ignores all others."""
    texts = [option for option in options if isinstance(option, str)]
    paths = [text for text in texts if text.startswith("gs://")]
    check_reachable(*paths)


def check_reachable(*paths: str) -> None:
    """Asks the store about each of these gs:// paths.

    Raises:
      ConfigError: the bucket does not exist, or is closed to whoever runs this.
      SparsecodError: the store does not answer, at least not now.
    """
    for path in dict.fromkeys(paths):
        _check(os.fspath(files.absolute(path)))


def _check(path: str) -> None:
    errors: list[BaseException] = []

    def query():
        try:
            _connect()
            fsspec.filesystem("gs").exists(path)
        except BaseException as error:
            errors.append(error)

    # gcsfs logs each attempt with its traceback.
    logging.getLogger("gcsfs").setLevel(logging.CRITICAL)
    # In a thread, because the libraries have no time limit for all attempts together.
    thread = threading.Thread(target=query, daemon=True)
    thread.start()
    thread.join(LIMIT)
    if thread.is_alive():
        raise SparsecodError(
            f"{path} can't be reached: no answer in {LIMIT:.0f} s, "
            "check the network and try again"
        )
    if errors:
        raise _explained(path, errors[0]) from errors[0]


def _connect() -> None:
    """Opens and closes a connection, which fails at once where there is no network."""
    url = os.environ.get("STORAGE_EMULATOR_HOST") or GOOGLE
    address = urllib.parse.urlsplit(url)
    port = address.port or PORTS[address.scheme]
    server = (address.hostname, port)
    connection = socket.create_connection(server, timeout=LIMIT / 2)
    connection.close()


def _explained(path: str, error: BaseException) -> SparsecodError:
    first_line = next(iter(str(error).strip().splitlines()), "")
    reason = f"{type(error).__name__}: {first_line}"[:300]
    if _is_refusal(error):
        return ConfigError(
            f"{path} can't be used with the credentials found here ({reason}): {LOGIN}"
        )
    return SparsecodError(
        f"{path} can't be reached ({reason}): "
        "check the network and the bucket's name, and try again"
    )


def _is_refusal(error: BaseException) -> bool:
    """Whether the store answered, but does not accept the credentials."""
    if type(error).__module__.startswith("google.auth"):
        return True
    code = getattr(error, "code", None)
    return code in (401, 403) or str(error).startswith("Forbidden")  # as in gcsfs
