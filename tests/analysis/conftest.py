"""A dense model and a mixture of experts, trained a little."""

import numpy as np
import pytest

from sparsecod_jax.analysis.subject import load
from sparsecod_jax.pretrained.load import find_model
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train.loop import train
from tests.support import tiny_configs

MODELS = {"dense": tiny_configs.MODEL, "mixture": tiny_configs.MIXTURE}


@pytest.fixture(scope="session", params=MODELS)
def run(request, tokens, tmp_path_factory):
    """The directory of a finished run."""
    workdir = tmp_path_factory.mktemp("runs") / request.param
    train(
        tiny_configs.experiment(
            steps=20,
            model=MODELS[request.param],
            data={"path": str(tokens)},
            checkpoint={"every": 20},
        ),
        str(workdir),
    )
    return RunDir(workdir)


@pytest.fixture(scope="session")
def trained(run):
    """Its model and parameters."""
    result = load(find_model(str(run.path)), np.zeros((2, 8), np.int32))
    return result.cfg, result.params
