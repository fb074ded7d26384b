"""What did a study find?

Study report: the answer in one sentence, then the numbers that it rests on.
"""

from collections.abc import Iterable

import numpy as np

from sparsecod_jax.analysis.catalogue import IN_REPORTS
from sparsecod_jax.report import depth, figures, overview, published
from sparsecod_jax.report.document import (
    Alarm,
    Document,
    Figure,
    Heading,
    Part,
    Series,
    Table,
    Text,
    short,
)
from sparsecod_jax.report.measures import find, measure
from sparsecod_jax.report.study_data import StudyData
from sparsecod_jax.report.verdicts import CONFIDENCE, Verdict, judge
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.study.study import Claim

BITS = "final/bits_per_byte"
# Of the scored sequences, whose length is the same for all arms of a study.
PROBE_VARIANCE = "scores/variance/residual/-1"
HEADLINES = {
    name: metric for score in IN_REPORTS for name, metric in score.headlines.items()
}
ARM_COLUMNS = {
    "bits per byte": BITS,
    "last-block variance": PROBE_VARIANCE,
    "growth over blocks": "derived/growth",
    **HEADLINES,
}
CLAIM_COLUMNS = (
    "claim",
    "outcome",
    "greater",
    "than",
    "effect",
    "interval",
    "minimum effect of interest",
    "by seed",
    "why undecided",
)


def document(study: StudyData) -> Document:
    """The whole report."""
    verdicts = [judge(claim, study.finished) for claim in study.claims]
    parts: list[Part] = [
        Text(answer(study, verdicts)),
        Text(progress(study)),
        _protocol(study),
        *_claims(verdicts),
        Heading("Arms"),
        _arms(study),
        *_mechanism(study),
        *_beside_published(study),
        *_runs(study),
    ]
    return Document(study.described["question"], parts)


def answer(study: StudyData, verdicts: list[Verdict]) -> str:
    """The answer of a study, in a few sentences.

    It names the claims by outcome, or, where a study has no claims, its losses.
    """
    if not verdicts:
        losses = [f"{arm} {_spread(study, arm, BITS)}" for arm in study.arms]
        return f"This study tests no claim. Bits per byte: {', '.join(losses)}."
    tested = [verdict for verdict in verdicts if verdict.pairs]
    sentences = [f"Of {len(verdicts)} claims {len(tested)} could be tested."]
    for outcome in ("supported", "contradicted", "undecided"):
        named = [_brief(verdict) for verdict in tested if verdict.outcome == outcome]
        sentences.append(f"{outcome.capitalize()}: {'; '.join(named) or 'none'}.")
    return " ".join(sentences)


def _brief(verdict: Verdict) -> str:
    """A claim and its effect."""
    return f"{verdict.claim.text} ({_effect(verdict)})"


def _effect(verdict: Verdict) -> str:
    """The mean effect; a dash where no seed has both numbers."""
    if verdict.effect is None:
        return "–"
    return _difference(verdict.claim, verdict.effect)


def _difference(claim: Claim, value: float) -> str:
    """A difference with its sign, or a factor."""
    if claim.ratio:
        return f"x {short(value, 3)}"
    sign = "+" if value > 0 else ""
    return f"{sign}{short(value, 3)}"


def progress(study: StudyData) -> str:
    """How many runs are finished and scored; the others are named, each with a reason."""
    unfinished = []
    for run in study.runs.values():
        if not run.is_finished:
            unfinished.append(f"{run.name} is {run.status}")
    unfinished += [f"{name} is missing" for name in study.missing]
    for name, reason in study.damaged.items():
        unfinished.append(f"{name} is left out ({shown(reason)})")

    total = len(study.described["runs"])
    text = f"{len(study.finished)} of {total} runs finished"
    if unfinished:
        text += f": {', '.join(unfinished)}"
    if study.unscored:
        text += f"; not fully scored: {', '.join(study.unscored)}"
    return f"{text}."


def _protocol(study: StudyData) -> Table:
    """What the study declared before its first run, so that it is not post hoc."""
    described = study.described
    rows = [
        ["held fixed", ", ".join(described["held_fixed"])],
        ["config", described["config"]],
        ["seeds", ", ".join(map(str, described["seeds"]))],
        ["not testable here", "; ".join(described["not_testable"])],
    ]
    return Table(["declared before the first run", ""], rows)


def _claims(verdicts: list[Verdict]) -> list[Part]:
    """The outcome of each claim, and the numbers behind it."""
    heading = Heading("Claims")
    if not verdicts:
        return [heading, Text("None: this study chooses a setting.")]
    # Intervals are not corrected for their number; the text says what that implies.
    by_chance = (1 - CONFIDENCE) * len(verdicts)
    reading = (
        f"Paired differences over seeds with a {CONFIDENCE:.0%} t-interval. Supported: the"
        " interval is on the claimed side and the mean is at least the minimum effect of"
        " interest; contradicted: the same on the other side."
        f" Of {len(verdicts)} intervals about {by_chance:.1g} would exclude zero by chance"
        " alone."
    )
    rows = [_claim_row(verdict) for verdict in verdicts]
    return [heading, Text(reading, small=True), Table(CLAIM_COLUMNS, rows)]


def _claim_row(verdict: Verdict) -> list[str]:
    claim, outcome = verdict.claim, verdict.outcome
    return [
        claim.text,
        Alarm(outcome) if outcome == "contradicted" else outcome,
        claim.greater,
        claim.than,
        _effect(verdict),
        _interval(verdict),
        f"x {claim.smallest:g}" if claim.ratio else f"{claim.smallest:g}",
        _by_seed(verdict),
        verdict.reason or "–",
    ]


def _interval(verdict: Verdict) -> str:
    """Both ends of the interval; a dash where there is none."""
    if verdict.interval is None:
        return "–"
    low, high = verdict.interval
    return f"{short(low, 3)} to {short(high, 3)}"


def _by_seed(verdict: Verdict) -> str:
    """The effect of each seed."""
    claim = verdict.claim
    effects = []
    for seed, (greater, than) in verdict.pairs.items():
        effect = greater / than if claim.ratio else greater - than
        effects.append(f"{seed}: {_difference(claim, effect)}")
    return ", ".join(effects) or "–"


def _arms(study: StudyData) -> Table:
    """The headline numbers and the mechanism of each arm."""
    columns = ARM_COLUMNS | study.described["mechanism"]
    rows = []
    for arm in study.arms:
        seeds = str(len(study.finished_of(arm)))
        rows.append([arm, seeds, *_spreads(study, arm, columns.values())])
    meanings = ["mean over finished seeds, and their range"]
    return Table(["arm", "seeds", *columns], rows, meanings)


def _spreads(study: StudyData, arm: str, names: Iterable[str]) -> list[str]:
    return [_spread(study, arm, name) for name in names]


def _spread(study: StudyData, arm: str, name: str) -> str:
    """The mean of a metric over seeds, and its range; a dash where no run has it."""
    numbers = [measure(run, name) for run in study.finished_of(arm)]
    values = [number for number in numbers if number is not None]
    if not values:
        return "–"
    mean = short(float(np.mean(values)))
    lowest, highest = short(min(values)), short(max(values))
    if lowest == highest:
        return mean
    return f"{mean} ({lowest} to {highest})"


def _mechanism(study: StudyData) -> list[Part]:
    """The variance of the last block against each mechanism that several arms have."""
    drawn: list[Part] = []
    for label, name in study.described["mechanism"].items():
        clouds = [_cloud(study, arm, name) for arm in study.arms]
        series = [cloud for cloud in clouds if cloud.x]
        if len(series) < 2:
            continue
        reading = (
            "One point per run. If the mechanism is the cause, arms that differ in it"
            " differ in variance too."
        )
        without = [cloud.label for cloud in clouds if not cloud.x]
        if without:
            reading += f" Without a value: {', '.join(without)}."
        figure = Figure(
            title=f"Variance against {label}",
            reading=reading,
            x_label=label,
            y_label="variance of the last block",
            series=series,
            log_y=True,
        )
        drawn.append(figure)
    return drawn


def _cloud(study: StudyData, arm: str, name: str) -> Series:
    """One point for each run of an arm that has both numbers."""
    x, y, names = [], [], []
    for run in study.finished_of(arm):
        value, variance = measure(run, name), measure(run, PROBE_VARIANCE)
        if value is not None and variance is not None:
            x.append(value)
            y.append(variance)
            names.append(run.name)
    return Series(arm, arm, x, y, points=True, names=names)


def _beside_published(study: StudyData) -> list[Part]:
    """Each published table and figure, followed by ours."""
    if not study.described["published"]:
        return []
    parts: list[Part] = [
        Heading("Comparison with the published numbers"),
        published.source(),
    ]
    for name in study.described["published"]:
        if name.startswith("tables/"):
            parts += [published.table(name), _our_table(study, name)]
        else:
            parts += [published.curves(name), _our_curves(study, name)]
    return parts


def _our_table(study: StudyData, name: str) -> Table:
    """Those columns of a published table that our runs have."""
    columns = published.columns(name)
    rows = [[arm, *_spreads(study, arm, columns.values())] for arm in study.arms]
    title = f"{published.TITLES[name]}, ours"
    return Table(["arm", *columns], rows, published.MEANINGS, title)


def _our_curves(study: StudyData, name: str) -> Figure:
    """The variance of the last block against step, or the Jacobian against block."""
    series = []
    for (arm, _), run in study.shown.items():
        distances = find(run.scores, ("jacobian", "distance_from_identity"))
        if "variance" in name and run.lines:
            metric = "variance/residual"
            series.append(figures.curve(run, metric, run.name, layer=-1, group=arm))
        elif "jacobian" in name and distances:
            blocks = list(range(1, len(distances) + 1))
            series.append(Series(run.name, arm, blocks, distances))
    theirs = published.curves(name)
    return Figure(
        title=f"{published.TITLES[name]}, ours",
        reading="Our runs, one colour per arm.",
        x_label=theirs.x_label,
        y_label=theirs.y_label,
        series=series,
        log_y=True,
    )


def _runs(study: StudyData) -> list[Part]:
    """Tables of all runs, and the figures of one seed, the first that has a run."""
    parts: list[Part] = []
    if study.runs:
        parts += [Heading("Runs"), overview.run_table(list(study.runs.values()))]
    scored = [run for run in study.shown.values() if run.scores]
    if scored:
        parts.append(overview.scores_table(scored))
    if study.shown:
        parts += _figures_of_one_seed(study)
    return parts


def _figures_of_one_seed(study: StudyData) -> list[Part]:
    first = min(seed for _, seed in study.shown)
    runs = [run for (_, seed), run in study.shown.items() if seed == first]
    note = (
        f"Runs of seed {first}; `sparsecod report` on a run's own directory draws the"
        " others."
    )
    parts: list[Part] = [
        Heading("Training"),
        Text(note, small=True),
        *figures.overview(runs),
    ]
    scores = depth.figures(runs)
    if scores:
        parts += [Heading("What each layer contributes"), *scores]
    return parts
