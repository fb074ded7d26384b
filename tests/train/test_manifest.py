"""What a run was made with is told wherever it runs."""

import jax

from sparsecod_jax import config
from sparsecod_jax.parallel.layout import resolve
from sparsecod_jax.train import manifest
from tests.support import tiny_configs


def test_where_there_is_no_git_the_commit_is_left_open(monkeypatch):
    monkeypatch.setenv("PATH", "")
    experiment = tiny_configs.experiment(mesh=config.Mesh(1, 1, 1, 1))
    layout = resolve(experiment, jax.devices()[:1])
    described = manifest.describe(
        experiment, layout, {"steps": 6}, {"eos_id": 0, "start_id": 0, "before": []}
    )
    assert described["commit"] is None
    assert described["identity_fields"] == {"steps": 6}
