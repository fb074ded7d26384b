"""What can a notebook do with a model, a run or a study?

Python API: load a model, look into it, read what runs have measured as pandas frames, and
train with statistics of your own.

N sequences, T positions, D width, L blocks.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import jax
import numpy as np

from sparsecod_jax.analysis import network, scores, subject
from sparsecod_jax.analysis.subject import Subject
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.model.own_statistics import Statistic, measuring
from sparsecod_jax.parallel import xla_flags
from sparsecod_jax.pretrained.load import LoadedModel, find_model, load_model
from sparsecod_jax.report.gathering import gather
from sparsecod_jax.report.runs import RunData
from sparsecod_jax.storage import files
from sparsecod_jax.train import loop

if TYPE_CHECKING:
    import pandas as pd

__all__ = [
    "layer_metrics",
    "layer_scores",
    "load",
    "metrics",
    "residual_stream",
    "score",
    "train",
]

# As the command line does; it has effect until jax starts its devices.
xla_flags.compute_own_reductions()

Score = Callable[[Subject, np.ndarray], Any]


def load(workdir: str | None = None, *, hf: str | None = None) -> LoadedModel:
    """A trained model, on all devices, in at least float32.

    Args:
      workdir: a run, whose newest checkpoint that verifies is taken; or else
      hf: a Hugging Face model folder.

    Raises:
      ConfigError: there is no such model, or it can't be used.
    """
    return load_model(find_model(workdir, hf))


def residual_stream(model: LoadedModel, tokens_NT: np.ndarray) -> np.ndarray:
    """The residual stream before the first block and after each block.

    Args:
      tokens_NT: token ids.

    Returns:
      [L + 1, N, T, D], in float32; float64 for a model that was trained so.

    Raises:
      ConfigError: the model does not take these tokens.
    """
    looked_at = subject.of_model(model, np.asarray(tokens_NT))
    parts = []
    with _exact(looked_at):
        for rows in looked_at.rows(looked_at.tokens_NT):
            states_LBTD = network.states(
                looked_at.net, looked_at.params, rows.tokens, rows.segments
            )
            parts.append(np.asarray(states_LBTD)[:, : rows.valid])
    return np.concatenate(parts, axis=1)


def score(
    model: LoadedModel, tokens_NT: np.ndarray, what: str | Score, *, seed: int = 0
) -> Any:
    """One layer score of a model, for sequences of your own.

    Args:
      tokens_NT: token ids.
      what: the name of a score of the catalogue, such as "usefulness"; or a function of your
        own, which is called with a `Subject` and the tokens, [N, T] int32.
      seed: of a score's cuts and probes.

    Returns:
      What scores.json would hold; or what your function returns.

    Raises:
      ConfigError: the model does not take these tokens, or there is no such score.
    """
    looked_at = subject.of_model(model, np.asarray(tokens_NT))
    with _exact(looked_at):
        if callable(what):
            return what(looked_at, looked_at.tokens_NT)
        if what not in scores.SCORES:
            known = ", ".join(scores.SCORES)
            raise ConfigError(f"there is no score {what!r}: choose from {known}")
        options = scores.Options(seed=seed, jacobian=None)
        return scores.SCORES[what](looked_at, looked_at.tokens_NT, options)


def train(
    config: str,
    workdir: str,
    *,
    overrides: Mapping[str, Any] | None = None,
    statistics: Mapping[str, Statistic] | None = None,
) -> dict[str, Any]:
    """Trains a run in this process, or resumes it; returns what final.json holds.

    Args:
      config: CONFIG[:SCALE], as for `sparsecod train`.
      overrides: config fields by dotted names, such as {"model.n_layers": 8}.
      statistics: further per-step statistics, by their names in metrics.jsonl. Each maps the
        block's input, what attention adds, what the FFN adds and the block's output, all
        [B, T, D], to a scalar, within the compiled step; over microbatches it is averaged.

    Raises:
      ConfigError: the config or the data can't be used, or `workdir` holds something else.
    """
    changes = (overrides or {}).items()
    words = [f"--config.{name}={value}" for name, value in changes]
    with measuring(statistics or {}):
        return loop.train(load_experiment(config, words), workdir)


def metrics(folder: str) -> "pd.DataFrame":
    """The scalars of metrics.jsonl: one row per run and step, indexed by both.

    Args:
      folder: a run, a study, or a folder of them.

    Raises:
      ConfigError: there is no run.
    """
    rows = []
    for name, run in _runs(folder).items():
        for line in run.lines:
            scalars = {key: value for key, value in line.items() if not _is_list(value)}
            rows.append({"run": name, **scalars})
    return _frame(rows, ["run", "step"])


def layer_metrics(folder: str) -> "pd.DataFrame":
    """The per-block statistics of metrics.jsonl: one row per run, step and block.

    Blocks are counted from 1. `folder` and errors are those of `metrics`.
    """
    rows = []
    for name, run in _runs(folder).items():
        for line in run.lines:
            lists = {key: value for key, value in line.items() if _is_list(value)}
            index = {"run": name, "step": line["step"]}
            rows += _per_block(index, lists, run)
    return _frame(rows, ["run", "step", "block"])


def layer_scores(folder: str) -> "pd.DataFrame":
    """The layer scores of scores.json with one value per block: one row per run and block.

    Columns are paths in scores.json, such as usefulness/loss_ratio. Blocks are counted from
    1. `folder` and errors are those of `metrics`; a run without scores has no rows.
    """
    rows = []
    for name, run in _runs(folder).items():
        if run.scores is not None:
            rows += _per_block({"run": name}, _lists(run.scores), run)
    return _frame(rows, ["run", "block"])


def _exact(looked_at: Subject) -> Any:
    """Scores are small differences: products are computed at the highest precision."""
    stack = contextlib.ExitStack()
    stack.enter_context(jax.set_mesh(looked_at.mesh))
    stack.enter_context(jax.default_matmul_precision("highest"))
    return stack


def _runs(folder: str) -> dict[str, RunData]:
    """The runs of a folder by name; those of several studies by study and run."""
    found = gather(files.absolute(folder))
    runs = {run.name: run for run in found.runs}
    several = len(found.studies) + bool(runs) > 1
    for study in found.studies:
        prefix = f"{study.name}/" if several else ""
        runs |= {f"{prefix}{run.name}": run for run in study.runs.values()}
    return runs


def _is_list(value: Any) -> bool:
    return isinstance(value, list)


def _one_each(values: list, blocks: int) -> bool:
    """Whether a list has one value, not a list, for each block."""
    return len(values) == blocks and not any(map(_is_list, values))


def _lists(values: Mapping[str, Any], path: str = "") -> dict[str, list]:
    """The lists in nested values, by their paths."""
    found = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            found |= _lists(value, f"{path}{name}/")
        elif _is_list(value):
            found[path + name] = value
    return found


def _per_block(
    index: dict[str, Any], lists: Mapping[str, list], run: RunData
) -> list[dict[str, Any]]:
    """One row per block, of the lists that have one value for each."""
    blocks = run.config["model"]["n_layers"]
    columns = {
        name: values for name, values in lists.items() if _one_each(values, blocks)
    }
    rows = []
    for block in range(blocks):
        values = {name: column[block] for name, column in columns.items()}
        rows.append({**index, "block": block + 1, **values})
    return rows


def _frame(rows: list[dict[str, Any]], index: list[str]) -> "pd.DataFrame":
    try:
        import pandas as pd
    except ImportError as error:
        advice = "pip install 'sparsecod-jax[notebook]'"
        raise ConfigError(f"frames need pandas: run `{advice}`") from error
    return pd.DataFrame(rows, columns=None if rows else index).set_index(index)
