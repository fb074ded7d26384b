"""How did runs learn? Figures of what was logged while they trained."""

import numpy as np

from sparsecod_jax.report.document import Figure, Series
from sparsecod_jax.report.runs import RunData

MAX_POINTS = 1000  # a curve: more can't be seen

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
    """Loss, variance against step and against layer, and the health of the routers; nothing where no run was trained here."""
    runs = [run for run in runs if run.lines]
    if not runs:
        return []
    variance = [
        variance_against_step(runs),
        variance_against_layer(runs),
        *branches(runs),
    ]
    return [loss(runs), held_out(runs), *variance, cosine(runs), *routers(runs)]


def loss(runs: list[RunData]) -> Figure:
    curves = [curve(run, "loss", run.name) for run in runs]
    return Figure(
        "Training loss",
        "Lower is better; each point is one batch.",
        "step",
        "nats per token",
        curves,
    )


def held_out(runs: list[RunData]) -> Figure:
    curves = []
    for run in runs:
        points = [
            (line["step"], line["evaluation/loss"])
            for line in run.lines
            if "evaluation/loss" in line
        ]
        points += [(run.final["steps"], run.final["loss"])] if run.final else []
        curves.append(
            Series(
                run.name,
                run.name,
                [step for step, _ in points],
                [value for _, value in points],
            )
        )
    return Figure(
        "Held-out loss",
        "On documents never trained on, at one length for all runs.",
        "step",
        "nats per token",
        curves,
    )


def variance_against_step(runs: list[RunData]) -> Figure:
    reading = "Growth towards the last block is what pushes deep Pre-LN blocks towards the identity."
    curves = _curves_of_three_blocks(runs, "variance/residual")
    return Figure(
        "Residual variance against step",
        reading,
        "step",
        "variance of the residual stream",
        curves,
        log_y=True,
    )


def variance_against_layer(runs: list[RunData]) -> Figure:
    reading = "Dashed: first step. Solid: last step. A steep solid line means that late blocks add little to a large residual stream."
    return _profile(
        runs,
        "variance/residual",
        "Residual variance against layer",
        "variance of the residual stream",
        reading,
        log_y=True,
    )


def branches(runs: list[RunData]) -> list[Figure]:
    reading = (
        "What the branch itself writes into the residual stream, before the addition."
    )
    return [
        _profile(
            runs,
            f"variance/{name}",
            f"{title} variance against layer",
            f"variance of the {title} branch",
            reading,
            log_y=True,
        )
        for name, title in (("attention", "Attention"), ("ffn", "FFN"))
    ]


def cosine(runs: list[RunData]) -> Figure:
    reading = "0: the update is orthogonal to the residual stream; negative: it removes what is there; positive: it repeats it."
    return _profile(
        runs,
        "cosine/update",
        "Update cosine against layer",
        "cos(residual stream, update)",
        reading,
    )


def routers(runs: list[RunData]) -> list[Figure]:
    """Nothing when no run has a mixture of experts."""
    mixtures = [run for run in runs if run.config["model"]["n_experts"]]
    if not mixtures:
        return []
    reading = "Growth means that the router collapses onto few experts."
    curves = _curves_of_three_blocks(mixtures, "router/max_load")
    against_step = Figure(
        "Largest load against step", reading, "step", "largest load / mean load", curves
    )
    return [against_step] + [
        _profile(
            mixtures,
            f"router/{name}",
            f"{title} against layer",
            y_label,
            f"{reading} Dashed: first step.",
        )
        for name, (title, y_label, reading) in ROUTER.items()
    ]


def _profile(
    runs, name: str, title: str, y_label: str, reading: str, *, log_y: bool = False
) -> Figure:
    curves = []
    for run in runs:
        layers = list(range(1, run.config["model"]["n_layers"] + 1))
        for line, dashed in ((run.lines[0], True), (run.lines[-1], False)):
            curves.append(
                Series(
                    f"{run.name}, step {line['step']}",
                    run.name,
                    layers,
                    line[name],
                    dashed,
                )
            )
    return Figure(title, reading, "block", y_label, curves, log_y=log_y)


def _curves_of_three_blocks(runs: list[RunData], name: str) -> list[Series]:
    """The first, the middle and the last block of each run."""
    curves = []
    for run in runs:
        depth = run.config["model"]["n_layers"]
        for layer in sorted({0, depth // 2, depth - 1}):
            curves.append(
                curve(
                    run, name, f"{run.name}, block {layer + 1} of {depth}", layer=layer
                )
            )
    return curves


def curve(
    run: RunData,
    name: str,
    label: str,
    *,
    layer: int | None = None,
    group: str | None = None,
) -> Series:
    """A value, or that of one block, against step."""
    chosen = (
        np.unique(np.linspace(0, len(run.lines) - 1, MAX_POINTS).astype(int))
        if run.lines
        else []
    )
    lines = [run.lines[i] for i in chosen]
    values = [line[name] if layer is None else line[name][layer] for line in lines]
    return Series(label, group or run.name, [line["step"] for line in lines], values)
