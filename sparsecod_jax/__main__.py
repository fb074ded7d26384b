"""`python -m sparsecod_jax`."""

import sys

if not sys.flags.safe_path:
    del sys.path[
        0
    ]  # the working folder, whose random.py is not Python's; `sparsecod` does not look there either

from sparsecod_jax.cli import main

if __name__ == "__main__":
    main()
