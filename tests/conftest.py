"""Eight CPU devices, no silent rank promotion, and a corpus that every test may read."""

import os

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["XLA_FLAGS"] = "--xla_backend_optimization_level=0"  # the tests mostly compile

import jax
import pytest

jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

WORDS = ("river stone light under old paper walks the a of in and green quiet seven morning bird over wind made her his it was not").split()


@pytest.fixture(scope="session")
def corpus(tmp_path_factory):
    """A folder of 60 documents of pseudo-English."""
    import numpy as np

    folder = tmp_path_factory.mktemp("corpus")
    rng = np.random.default_rng(0)
    for number in range(60):
        words = rng.choice(WORDS, size=rng.integers(150, 400), p=rng.dirichlet(np.ones(len(WORDS))))
        (folder / f"{number:02d}.txt").write_text(" ".join(words))
    return folder


@pytest.fixture(scope="session")
def tokens(corpus, tmp_path_factory):
    """A data directory of about 10,000 training ids, 300 of them different."""
    from etils import epath

    from sparsecod_jax.data.prepare import Request, prepare

    out = epath.Path(tmp_path_factory.mktemp("tokens")) / "data"
    prepare(Request(str(corpus), vocab_size=300, validation_fraction=0.2), str(out))
    return out
