"""Studies of runs small enough for a test."""

from pathlib import Path

from sparsecod_jax import config
from tests.support import tiny_configs

TWO = '{"flat": {"model.n_layers": 2}, "deep": {"model.n_layers": 3}}'


def write(
    folder: Path,
    tokens,
    arms: str,
    *,
    seeds=(0,),
    steps: int = 6,
    every: int = 2,
    analyze=None,
) -> str:
    """A study of tiny runs in a file; returns its spec."""
    experiment = tiny_configs.experiment(
        steps=steps, data={"path": str(tokens)}, checkpoint={"every": every}
    )
    fields = config.flatten(config.to_dict(experiment))
    changes = {
        name: tuple(value) if isinstance(value, list) else value
        for name, value in fields.items()
        if "seed" not in name.split(".")
    }
    text = f"""from sparsecod_jax.study.study import Study
def get_study(scale):
    return Study("Why?", (), "configs/smoke.py:nano", {arms}, (), (), changes={changes!r}, seeds={seeds!r}, analyze={analyze or {}!r})
"""
    (folder / "study.py").write_text(text)
    return f"{folder / 'study.py'}:nano"
