"""The command line, noting the training windows that this process reads.

python recording.py FILE SUBCOMMAND ...
"""

import sys

from sparsecod_jax.cli import main
from sparsecod_jax.data.store import Windows


def record_reads(file) -> None:
    """Writes the number of each training window that is read from now on."""
    read = Windows.__getitem__

    def recorded(self, index):
        file.write(f"{int(index)}\n")
        return read(self, index)

    Windows.__getitem__ = recorded


if __name__ == "__main__":
    with open(sys.argv[1], "w", buffering=1) as file:
        record_reads(file)
        del sys.argv[1]
        main()
