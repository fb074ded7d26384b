"""How did runs learn?

Training figures: loss, variance and router health, as `metrics.jsonl` has them.
"""

from typing import Any

import numpy as np

from sparsecod_jax.report.document import Figure, Series
from sparsecod_jax.report.runs import RunData

MAX_POINTS = 1000  # of a curve: more can't be told apart

# Of each logged value of a router: title, unit and how to read it.
ROUTER = {
    "load_balance_loss": (
        "Load-balance loss",
        "loss, before its weight",
        "1 when choices and probabilities are uniform; higher is worse.",
    ),
    "z_loss": (
        "Router z-loss",
        "loss, before its weight",
        "Large logits make the choice hard and the gradient small.",
    ),
    "max_load": (
        "Largest load",
        "largest load / mean load",
        "1 when every expert gets as many tokens as any other.",
    ),
    "load_entropy": (
        "Load entropy",
        "entropy / its maximum",
        "1 when tokens spread evenly, 0 when all go to one expert.",
    ),
    "dead_experts": (
        "Dead experts",
        "share of experts",
        "Experts without a token in that step.",
    ),
    "gate_sum": (
        "Gate mass",
        "sum of a token's gates",
        "Probability that the softmax gives to the chosen experts, mean over tokens.",
    ),
    "gate_square_sum": (
        "Squared gate mass",
        "sum of a token's squared gates",
        "It sets the variance of the FFN branch, mean over tokens.",
    ),
}


def overview(runs: list[RunData]) -> list[Figure]:
    """All figures of training; none where no run has logged anything.

    Loss, variance against step and against layer, and the health of routers.
    """
    runs = [run for run in runs if run.lines]
    if not runs:
        return []
    return [
        loss(runs),
        held_out(runs),
        variance_against_step(runs),
        variance_against_layer(runs),
        *branches(runs),
        cosine(runs),
        *routers(runs),
    ]


def loss(runs: list[RunData]) -> Figure:
    return Figure(
        title="Training loss",
        reading="Lower is better; each point is one batch.",
        x_label="step",
        y_label="nats per token",
        series=[curve(run, "loss", run.name) for run in runs],
    )


def held_out(runs: list[RunData]) -> Figure:
    return Figure(
        title="Held-out loss",
        reading="On documents never trained on, at one length for all runs.",
        x_label="step",
        y_label="nats per token",
        series=[_held_out_curve(run) for run in runs],
    )


def _held_out_curve(run: RunData) -> Series:
    """Evaluations during training, and the last one of a finished run."""
    evaluated = [line for line in run.lines if "evaluation/loss" in line]
    steps = [line["step"] for line in evaluated]
    losses = [line["evaluation/loss"] for line in evaluated]
    if run.final:
        steps.append(run.final["steps"])
        losses.append(run.final["loss"])
    return Series(run.name, run.name, steps, losses)


def variance_against_step(runs: list[RunData]) -> Figure:
    return Figure(
        title="Residual variance against step",
        reading=(
            "Growth towards the last block is what pushes deep Pre-LN blocks towards"
            " the identity."
        ),
        x_label="step",
        y_label="variance of the residual stream",
        series=_curves_of_three_blocks(runs, "variance/residual"),
        log_y=True,
    )


def variance_against_layer(runs: list[RunData]) -> Figure:
    return _profile(
        runs,
        "variance/residual",
        title="Residual variance against layer",
        reading=(
            "Dashed: first step. Solid: last step. A steep solid line means that late"
            " blocks add little to a large residual stream."
        ),
        unit="variance of the residual stream",
        log_y=True,
    )


def branches(runs: list[RunData]) -> list[Figure]:
    """The variance of each branch of a block against layer."""
    names = {"attention": "Attention", "ffn": "FFN"}
    return [
        _profile(
            runs,
            f"variance/{name}",
            title=f"{branch} variance against layer",
            reading=(
                "What the branch itself writes into the residual stream, before the"
                " addition."
            ),
            unit=f"variance of the {branch} branch",
            log_y=True,
        )
        for name, branch in names.items()
    ]


def cosine(runs: list[RunData]) -> Figure:
    return _profile(
        runs,
        "cosine/update",
        title="Update cosine against layer",
        reading=(
            "0: the update is orthogonal to the residual stream; negative: it removes"
            " what is there; positive: it repeats it."
        ),
        unit="cos(residual stream, update)",
    )


def routers(runs: list[RunData]) -> list[Figure]:
    """The health of routers; no figure when no run has a mixture of experts."""
    sparse = [run for run in runs if run.config["model"]["n_experts"]]
    if not sparse:
        return []
    against_step = Figure(
        title="Largest load against step",
        reading="Growth means that the router collapses onto few experts.",
        x_label="step",
        y_label="largest load / mean load",
        series=_curves_of_three_blocks(sparse, "router/max_load"),
    )
    against_layer = [
        _profile(
            sparse,
            f"router/{name}",
            title=f"{title} against layer",
            reading=f"{reading} Dashed: first step.",
            unit=unit,
        )
        for name, (title, unit, reading) in ROUTER.items()
    ]
    return [against_step, *against_layer]


def _profile(
    runs: list[RunData],
    name: str,
    *,
    title: str,
    reading: str,
    unit: str,
    log_y: bool = False,
) -> Figure:
    """A metric against the block, at the first step (dashed) and at the last."""
    curves = []
    for run in runs:
        blocks = list(range(1, run.config["model"]["n_layers"] + 1))
        for line, dashed in ((run.lines[0], True), (run.lines[-1], False)):
            label = f"{run.name}, step {line['step']}"
            curves.append(Series(label, run.name, blocks, line[name], dashed))
    return Figure(title, reading, "block", unit, curves, log_y=log_y)


def _curves_of_three_blocks(runs: list[RunData], name: str) -> list[Series]:
    """The first, the middle and the last block of each run."""
    curves = []
    for run in runs:
        depth = run.config["model"]["n_layers"]
        for layer in sorted({0, depth // 2, depth - 1}):
            label = f"{run.name}, block {layer + 1} of {depth}"
            curves.append(curve(run, name, label, layer=layer))
    return curves


def curve(
    run: RunData,
    name: str,
    label: str,
    *,
    layer: int | None = None,
    group: str | None = None,
) -> Series:
    """A metric against step, or that of one block.

    Args:
      layer: which block, counted from 0 or from the end; None where the metric has one
        value per step.
      group: what shares a colour; None is the run's name.
    """
    lines = _thinned(run.lines)
    steps = [line["step"] for line in lines]
    values = [line[name] for line in lines]
    if layer is not None:
        values = [value[layer] for value in values]
    return Series(label, group or run.name, steps, values)


def _thinned(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most MAX_POINTS lines, evenly spaced, the first and the last among them."""
    if not lines:
        return []
    indices = np.linspace(0, len(lines) - 1, MAX_POINTS).astype(int)
    return [lines[index] for index in np.unique(indices)]
