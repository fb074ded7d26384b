"""Which number of a run does a name mean?

Metrics of a run by name, as claims, mechanisms and tables use them:

    final/bits_per_byte           of final.json
    scores/usefulness/score       of analysis/scores.json
    last/variance/residual/-1     of the last line of metrics.jsonl, its last block
    first/variance/residual/0     of the first line, its first block
    derived/density               computed here, see DERIVED

A name may end inside a list: an index selects one value, `mean` averages all of them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsecod_jax.report.runs import RunData

NEAR_ZERO = "near_zero_0.1"


def measure(run: RunData, name: str) -> float | None:
    """The number of a run by its name.

    Args:
      name: as the module's docstring lists them.

    Returns:
      The number; None where the run has none, or one that is not finite.

    Raises:
      KeyError: the first part of the name, or a derived number, is unknown.
    """
    value = _value(run, name)
    if isinstance(value, (int, float)) and np.isfinite(value):
        return float(value)
    return None


def _value(run: RunData, name: str) -> Any:
    root, *path = name.split("/")
    if root == "derived":
        return DERIVED[path[0]](run)
    lines = run.lines or [None]
    sources = {
        "final": run.final,
        "scores": run.scores,
        "last": lines[-1],
        "first": lines[0],
    }
    return find(sources[root], path)


def find(value: Any, path: Sequence[str]) -> Any:
    """The value at a path of names; None where a part of the path is missing.

    A key that contains a slash, such as `variance/residual`, spans several names.
    """
    if not path or value is None:
        return value
    if isinstance(value, list):
        if list(path) == ["mean"]:
            return _mean(value)
        return find(value[int(path[0])], path[1:])
    # The longest key that is there, since keys may contain slashes.
    for names in range(len(path), 0, -1):
        key = "/".join(path[:names])
        if key in value:
            return find(value[key], path[names:])
    return None


def _mean(values: list[Any]) -> float | None:
    """The mean over a list of numbers, or over a list of lists of numbers."""
    flat = []
    for value in values:
        flat += value if isinstance(value, list) else [value]
    if not flat or None in flat:
        return None
    return float(np.mean(flat))


def _decay(run: RunData) -> float | None:
    """The share of a weight that weight decay alone would remove, without compounding.

    It is the sum over steps of learning rate x weight decay.
    """
    if not run.lines:
        return None
    total = sum(line["lr"] for line in run.lines)
    return run.config["optimizer"]["weight_decay"] * total


def _density(run: RunData) -> float | None:
    """How much of the network takes part in a prediction.

    The product of three factors, each of which is 1 where nothing is sparse:
    attention density, 1 for uniform attention; the share of weights that are not near
    zero, a plain mean over kinds of matrices and blocks; and the share of experts that
    a token uses, 1 for a dense model, where a shared expert does not count.
    """
    attention = find(run.scores, ["sparsity", "attention", "heads", "density", "mean"])
    kinds = find(run.scores, ["sparsity", "weights", "kinds"])
    if attention is None or kinds is None:
        return None
    near_zero = float(np.mean([np.mean(kind[NEAR_ZERO]) for kind in kinds.values()]))
    return attention * (1 - near_zero) * _share_of_experts(run.config["model"])


def _share_of_experts(model: dict[str, Any]) -> float:
    if not model["n_experts"]:
        return 1.0
    return model["top_k"] / model["n_experts"]


def _growth(run: RunData) -> float | None:
    """The variance after the last block over that after the first.

    Unlike the variance itself, it does not change with the scale of the residual stream.
    """
    first = find(run.scores, ["variance", "residual", "0"])
    last = find(run.scores, ["variance", "residual", "-1"])
    if not first or last is None:
        return None
    return last / first


def _later_usefulness(run: RunData) -> float | None:
    """The mean log loss ratio of the blocks after the first.

    In small models the first block alone outweighs all others.
    """
    ratios = find(run.scores, ["usefulness", "loss_ratio"]) or []
    later = ratios[1:]
    if not later or None in later:
        return None
    return float(np.mean(np.log(later)))


DERIVED = {
    "decay": _decay,
    "density": _density,
    "growth": _growth,
    "later_usefulness": _later_usefulness,
}
