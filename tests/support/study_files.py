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
    """Writes a study of tiny runs; returns its spec.

    Args:
      tokens: its data directory.
      arms: as Python source.
      every: steps between checkpoints.
      analyze: options of the analysis.
    """
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
    return Study(
        question="Why?",
        held_fixed=(),
        config="configs/smoke.py:nano",
        arms={arms},
        claims=(),
        not_testable=(),
        changes={changes!r},
        seeds={seeds!r},
        analyze={analyze or {}!r},
    )
"""
    path = folder / "study.py"
    path.write_text(text)
    return f"{path}:nano"
