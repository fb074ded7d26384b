"""Study directories as a sweep leaves them, with chosen numbers."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np

from sparsecod_jax import config
from sparsecod_jax.analysis.catalogue import CATALOGUE
from sparsecod_jax.report.study_data import StudyData, load_study
from sparsecod_jax.storage.records import write_json
from sparsecod_jax.storage.rundir import RunDir, Status
from sparsecod_jax.study.study import Claim, Run, Study, expand
from sparsecod_jax.study.study_dir import StudyDir, begin

DEEPER = Claim(
    "the residual stream of the deep model varies more",
    "last/variance/residual/-1",
    "deep",
    "flat",
    1.25,
    ratio=True,
)
BETTER = Claim("depth lowers the loss", "final/bits_per_byte", "flat", "deep", 0.01)
STUDY = Study(
    question="Does depth pay?",
    held_fixed=("width", "tokens"),
    config="configs/smoke.py:nano",
    arms={"flat": {"model.n_layers": 2}, "deep": {"model.n_layers": 4}},
    claims=(DEEPER, BETTER),
    not_testable=("accuracy",),
    published=(
        "tables/depth_scores",
        "curves/last_layer_variance_by_step/depth",
        "curves/jacobian_distance_by_block",
    ),
    mechanism={"learning rate x decay": "derived/decay"},
    analyze={"sequences": 4},
)


def write(
    path: Path, study: Study = STUDY, numbers: Any = None, **statuses: Status
) -> StudyDir:
    """Writes a study directory.

    Args:
      numbers: from a run to its bits per byte and the variance of its last block.
      statuses: by run, of those that did not finish; in a name `_` stands for `-`.
    """
    directory = StudyDir(path)  # pyright: ignore[reportArgumentType]
    directory.path.mkdir(parents=True)
    runs = expand(study)
    run_dirs = begin(directory, "configs/sweeps/made_up.py:nano", study, runs)
    for run in runs:
        run_dir = run_dirs[run.name]
        if run_dir.path.exists():  # it belongs to another study, too
            continue
        bits, variance = numbers(run) if numbers else (2.0, 8.0)
        status = statuses.get(run.name.replace("-", "_"), "finished")
        write_run(run_dir, run, bits, variance, status)
    return directory


def write_run(
    run_dir: RunDir, run: Run, bits: float, variance: float, status: Status = "finished"
) -> None:
    """Writes a run directory; a run that did not finish has no result."""
    layers = run.experiment.model.n_layers
    run_dir.path.mkdir(parents=True)
    write_json(run_dir.config, config.to_dict(run.experiment))
    run_dir.set_status(status)
    lines = [_line(step, np.linspace(0.5, variance, layers)) for step in (1, 2, 3)]
    run_dir.metrics.write_text("".join(json.dumps(line) + "\n" for line in lines))
    if status != "finished":
        return
    final = {
        "loss": bits,
        "bits_per_byte": bits,
        "perplexity": 2**bits,
        "unigram_entropy": 6.0,
        "steps": 3,
        "seconds": 60.0,
        "mfu": None,
    }
    write_json(run_dir.final, final)
    run_dir.analysis.path.mkdir()
    write_json(run_dir.analysis.scores, scores(layers, variance))


def _line(step: int, variance_L) -> dict[str, Any]:
    profile = variance_L.tolist()
    variances = {
        f"variance/{name}": profile for name in ("residual", "attention", "ffn")
    }
    return {
        "step": step,
        "tokens": 100 * step,
        "loss": 5.0 / step,
        "lr": 1e-3 * step,
        "cosine/update": profile,
        **variances,
    }


def scores(layers: int, variance: float) -> dict[str, Any]:
    """What `analyze` would write, as far as reports read it.

    The larger the variance, the less useful the blocks.
    """
    ones = [1.0] * layers
    return {
        "sequences": dict.fromkeys(CATALOGUE, 4),
        "variance": {"residual": np.linspace(0.5, variance, layers).tolist()},
        "usefulness": {
            "loss_ratio": ones,
            "score": 1 / variance,
            "ci95": [0.0, 1.0],
            "share_above": {"1.10": {"share": 0.5}},
            "as_published": {
                "loss_ratio": ones,
                "share_above": {"1.10": {"share": 0.75}},
            },
        },
        "causal": {
            "matrix": [ones] * layers,
            "score": 2 / variance,
            "future": {"matrix": [ones] * layers},
        },
        "permutation": {"matrix": [ones] * layers, "score": 3 / variance},
        "computed_with": {"jacobian": {"jax": "0.10.2", "platform": "cpu"}},
        "jacobian": {
            "distance_from_identity": ones,
            "same_position": {"distance_from_identity": ones},
        },
        "block_influence": ones,
        "profile": {
            "relative_update/block": ones,
            "lens_divergence": ones,
            "lens_overlap": ones,
        },
        "sparsity": {
            "attention": {
                "probe_length": 8,
                "heads": {"density": [[0.4, 0.6]] * layers},
            },
            "activations": {"massive": ones},
            "weights": {
                "kinds": {"ffn/down": {"rms": ones, "near_zero_0.1": [0.1] * layers}}
            },
        },
        "theory": {"predicted": ones, "measured": ones, "relative_error": ones},
    }


def loaded(
    path: Path, numbers: Any = None, study: Study = STUDY, **statuses: Status
) -> StudyData:
    """Writes a study and reads it as a report does."""
    return load_study(write(path, study, numbers, **statuses))


def seeds(count: int) -> Study:
    """The study with this number of seeds."""
    return dataclasses.replace(STUDY, seeds=tuple(range(count)))
