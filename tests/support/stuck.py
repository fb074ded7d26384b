"""`sparsecod`, stuck somewhere for ever: python stuck.py WHERE WHEN SUBCOMMAND ...

WHERE is one of:
  save: the checkpoint of step WHEN.
  read: the training window that is read as the WHEN-th.
  compile: the train step; WHEN is not used.
"""

import sys
import threading
from typing import Any
from unittest import mock


def _for_ever(*_args, **_options) -> Any:
    threading.Event().wait()


def _stick_at_save(when: int) -> None:
    from sparsecod_jax.storage.checkpoint import Checkpointer

    save = Checkpointer.save

    def save_or_stick(self, step, *rest):
        if step >= when:
            _for_ever()
        return save(self, step, *rest)

    mock.patch.object(Checkpointer, "save", save_or_stick).start()


def _stick_at_read(when: int) -> None:
    from sparsecod_jax.data.store import Windows

    read = Windows.__getitem__
    reads = iter(range(10**9))

    def read_or_stick(self, index):
        if next(reads) >= when:
            _for_ever()
        return read(self, index)

    mock.patch.object(Windows, "__getitem__", read_or_stick).start()


def _stick_at_compile(_when: int) -> None:
    from sparsecod_jax.train.step import Program

    mock.patch.object(Program, "lower", _for_ever).start()


STICK = {
    "save": _stick_at_save,
    "read": _stick_at_read,
    "compile": _stick_at_compile,
}

if __name__ == "__main__":
    from sparsecod_jax.cli import main

    where, when = sys.argv[1], int(sys.argv[2])
    STICK[where](when)
    del sys.argv[1:3]
    main()
