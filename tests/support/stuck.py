"""`sparsecod`, stuck somewhere for ever: python stuck.py WHERE WHEN VERB ...

WHERE is "save" (the checkpoint of step WHEN), "read" (the training window that is read as the WHEN-th) or "compile".
"""

import sys
import threading
from collections.abc import Callable
from typing import Any


def _for_ever(*_args, **_options) -> Any:
    threading.Event().wait()


def _stick(where: str, when: int) -> None:
    patch: Callable[..., None] = setattr
    if where == "save":
        from sparsecod_jax.storage.checkpoint import Checkpointer

        save = Checkpointer.save
        patch(
            Checkpointer,
            "save",
            lambda self, step, *rest: (save if step < when else _for_ever)(
                self, step, *rest
            ),
        )
    elif where == "read":
        from sparsecod_jax.data.store import Windows

        read, reads = Windows.__getitem__, iter(range(10**9))
        patch(
            Windows,
            "__getitem__",
            lambda self, index: (
                read(self, index) if next(reads) < when else _for_ever()
            ),
        )
    else:
        from sparsecod_jax.train.step import Program

        patch(Program, "lower", _for_ever)


if __name__ == "__main__":
    from sparsecod_jax.cli import main

    _stick(sys.argv[1], int(sys.argv[2]))
    del sys.argv[1:3]
    main()
