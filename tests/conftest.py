"""What all tests share.

Eight CPU devices, no silent rank promotion, nothing left in the home directory, and a
corpus that every test may read.
"""

import os
import tempfile

from sparsecod_jax.parallel import xla_flags

os.environ.setdefault("JAX_PLATFORMS", "cpu")
# The tests mostly compile.
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"
# For programs that the command line compiles; the folder lasts as long as its object.
os.environ["XDG_CACHE_HOME"] = (CACHES := tempfile.TemporaryDirectory()).name

import jax
import pytest

xla_flags.compute_own_reductions()  # as the command line does
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

WORDS = (
    "a of in and it was not the river stone light under old paper walks green quiet"
    " seven bird wind her his"
)


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of 60 documents of pseudo-English."""
    import numpy as np

    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    words = WORDS.split()
    for number in range(60):
        size = rng.integers(150, 400)
        shares = rng.dirichlet(np.ones(len(words)))
        chosen = rng.choice(words, size=size, p=shares)
        (folder / f"{number:02d}.txt").write_text(" ".join(chosen))
    return folder


@pytest.fixture(scope="session")
def tokens(corpus, tmp_path_factory):
    """A data directory of about 10,000 training ids, 300 of them different."""
    from etils import epath

    from sparsecod_jax.data.prepare import Request, prepare

    out = epath.Path(tmp_path_factory.mktemp("tokens")) / "data"
    prepare(Request(str(corpus), vocab_size=300, validation_fraction=0.2), str(out))
    return out
