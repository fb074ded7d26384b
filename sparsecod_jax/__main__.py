"""`python -m sparsecod_jax`."""

from sparsecod_jax.cli import main

if __name__ == "__main__":
    main()
