"""Which number of a run is meant by a name?

    final/bits_per_byte                     of final.json
    scores/usefulness/score                 of analysis/scores.json
    last/variance/residual/-1               of the last line of metrics.jsonl, its last block; `first` is the first line
    derived/decay, derived/density,         computed here
    derived/growth, derived/later_usefulness

A name may end inside a list: an index takes one value, `mean` the mean over all that the list holds.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from sparsecod_jax.report.runs import RunData

NEAR_ZERO = "near_zero_0.1"


def measure(run: RunData, name: str) -> float | None:
    """The number, None where the run has none, or one that is not finite."""
    root, *path = name.split("/")
    sources = {
        "final": run.final,
        "scores": run.scores,
        "last": run.lines[-1] if run.lines else None,
        "first": next(iter(run.lines), None),
    }
    found = DERIVED[path[0]](run) if root == "derived" else find(sources[root], path)
    return (
        float(found) if isinstance(found, (int, float)) and np.isfinite(found) else None
    )


def find(value: Any, path: Sequence[str]) -> Any:
    """What lies at a path of names, None where a part of it is missing; a field, such as `variance/residual`, may span several of them."""
    if not path or value is None:
        return value
    if isinstance(value, list):
        return (
            _mean(value)
            if list(path) == ["mean"]
            else find(value[int(path[0])], path[1:])
        )
    for parts in range(len(path), 0, -1):
        if (name := "/".join(path[:parts])) in value:
            return find(value[name], path[parts:])
    return None


def _mean(values: list[Any]) -> float | None:
    flat = [
        value
        for each in values
        for value in (each if isinstance(each, list) else [each])
    ]
    return None if None in flat or not flat else float(np.mean(flat))


def _decay(run: RunData) -> float | None:
    """The share of a weight that decay alone would take away, before compounding: the sum over steps of learning rate x decay."""
    return (
        run.config["optimizer"]["weight_decay"] * sum(line["lr"] for line in run.lines)
        if run.lines
        else None
    )


def _density(run: RunData) -> float | None:
    """How much of the network takes part: attention density x share of weights that are not near zero x share of experts a token uses.

    Each factor is 1 for uniform attention, no weight near zero, and a dense model. The share of weights is a plain mean over kinds of
    matrices and blocks; the share of experts leaves a shared one out.
    """
    attention = find(run.scores, ["sparsity", "attention", "heads", "density", "mean"])
    kinds = find(run.scores, ["sparsity", "weights", "kinds"])
    if attention is None or kinds is None:
        return None
    near_zero = float(np.mean([np.mean(kind[NEAR_ZERO]) for kind in kinds.values()]))
    model = run.config["model"]
    return (
        attention
        * (1 - near_zero)
        * (model["top_k"] / model["n_experts"] if model["n_experts"] else 1.0)
    )


def _growth(run: RunData) -> float | None:
    """Variance after the last block over that after the first: what is left when the stream as a whole is larger or smaller."""
    first, last = (
        find(run.scores, ["variance", "residual", end]) for end in ("0", "-1")
    )
    return last / first if first and last is not None else None


def _later_usefulness(run: RunData) -> float | None:
    """Mean log loss ratio of the blocks after the first, which alone outweighs all others in small models."""
    ratios = (find(run.scores, ["usefulness", "loss_ratio"]) or [])[1:]
    return float(np.mean(np.log(ratios))) if ratios and None not in ratios else None


DERIVED = {
    "decay": _decay,
    "density": _density,
    "growth": _growth,
    "later_usefulness": _later_usefulness,
}
