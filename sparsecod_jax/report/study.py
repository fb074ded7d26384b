"""What did a study find? The answer first, then the numbers that it rests on."""

import dataclasses
from typing import Any

import numpy as np

from sparsecod_jax import config
from sparsecod_jax.analysis.catalogue import IN_REPORTS
from sparsecod_jax.errors import SparsecodError
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
from sparsecod_jax.report.runs import RunData, load_run
from sparsecod_jax.report.verdicts import CONFIDENCE, Verdict, judge
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study import Claim, identity_by_path
from sparsecod_jax.study.study_dir import StudyDir, is_begun, is_scored, read

MISCONFIGURED = "misconfigured"
BITS = "final/bits_per_byte"
PROBE_VARIANCE = "scores/variance/residual/-1"  # over sequences of one length, whatever length arms were trained on
HEADLINES = {
    name: metric for score in IN_REPORTS for name, metric in score.headlines.items()
}
ARM_COLUMNS = {
    "bits per byte": BITS,
    "last-block variance": PROBE_VARIANCE,
    "growth over blocks": "derived/growth",
    **HEADLINES,
}


@dataclasses.dataclass(frozen=True)
class StudyData:
    """A study as it lies on disk."""

    name: str
    described: dict[str, Any]  # study.json
    runs: dict[tuple[str, int], RunData]  # by arm and seed, those that have begun
    missing: list[str]  # names of those that have not
    unscored: list[str]  # names of finished ones that lack scores
    damaged: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # why runs can't be read, by their names

    @property
    def shown(self) -> dict[tuple[str, int], RunData]:
        """Those that are what the study asked for."""
        return {
            key: run for key, run in self.runs.items() if run.status != MISCONFIGURED
        }

    @property
    def finished(self) -> dict[tuple[str, int], RunData]:
        return {key: run for key, run in self.runs.items() if run.status == "finished"}

    @property
    def claims(self) -> list[Claim]:
        return [Claim(**claim) for claim in self.described["claims"]]


def load_study(directory: StudyDir) -> StudyData:
    """Reads a study's runs wherever they lie; one that is another run than the study asked for is `misconfigured`.

    Raises:
      ConfigError: study.json is damaged, or not what a sweep writes.
    """
    record, places = read(directory)
    described = record.to_dict()
    data = StudyData(directory.path.name, described, {}, [], [])
    for name, entry in described["runs"].items():
        if not is_begun(places[name]):
            data.missing.append(name)
            continue
        try:
            _add(data, name, entry, places[name])
        except SparsecodError as error:
            data.damaged[name] = str(error)
    return data


def _add(data: StudyData, name: str, entry: dict[str, Any], place: RunDir) -> None:
    """Reads a run of a study, whose study.json says `entry` of it."""
    run, analyze = load_run(place, name), data.described["analyze"]
    if (
        identity_by_path(config.from_dict(run.config), entry["data"])
        != entry["identity"]
    ):
        run = dataclasses.replace(run, status=MISCONFIGURED)
    data.runs[entry["arm"], entry["seed"]] = run
    if (
        run.status == "finished"
        and analyze
        and not is_scored(place, analyze.get("scores"))
    ):
        data.unscored.append(name)


def document(study: StudyData) -> Document:
    """The whole report."""
    verdicts = [judge(claim, study.finished) for claim in study.claims]
    parts: list[Part] = [
        Text(answer(study, verdicts)),
        Text(progress(study)),
        _protocol(study),
    ]
    parts += [
        Heading("What was claimed"),
        *_claims(study, verdicts),
        Heading("Arms"),
        _arms(study),
        *_mechanism(study),
    ]
    if study.described["published"]:
        parts += [
            Heading("Beside the published numbers"),
            published.source(),
            *_beside_published(study),
        ]
    return Document(study.described["question"], [*parts, *_runs(study)])


def answer(study: StudyData, verdicts: list[Verdict]) -> str:
    """One sentence drawn from the numbers."""
    if not verdicts:
        losses = {arm: _spread(study, arm, BITS) for arm in study.described["arms"]}
        return f"This study tests no claim. Bits per byte: {', '.join(f'{arm} {loss}' for arm, loss in losses.items())}."
    tested = [verdict for verdict in verdicts if verdict.pairs]
    found = []
    for outcome in ("seen", "opposite", "undecided"):
        named = [_brief(verdict) for verdict in tested if verdict.outcome == outcome]
        found.append(
            f"{outcome.capitalize()}: {'; '.join(named) if named else 'none'}."
        )
    return " ".join(
        [f"Of {len(verdicts)} claims {len(tested)} could be tested.", *found]
    )


def _brief(verdict: Verdict) -> str:
    return f"{verdict.claim.text} ({_effect(verdict)})"


def _effect(verdict: Verdict) -> str:
    return "–" if verdict.effect is None else _difference(verdict.claim, verdict.effect)


def _difference(claim: Claim, value: float) -> str:
    return (
        f"x {short(value, 3)}"
        if claim.ratio
        else f"{'+' if value > 0 else ''}{short(value, 3)}"
    )


def progress(study: StudyData) -> str:
    """How much of the study there is; whatever is not finished is named."""
    total = len(study.described["runs"])
    unfinished = [
        f"{run.name} is {run.status}"
        for run in study.runs.values()
        if run.status != "finished"
    ]
    unfinished += [f"{name} is missing" for name in study.missing]
    unfinished += [
        f"{name} is left out ({shown(reason, 300)})"
        for name, reason in study.damaged.items()
    ]
    text = f"{len(study.finished)} of {total} runs finished" + (
        f": {', '.join(unfinished)}" if unfinished else ""
    )
    return (
        text
        + (f"; not fully scored: {', '.join(study.unscored)}" if study.unscored else "")
        + "."
    )


def _protocol(study: StudyData) -> Table:
    described = study.described
    rows = [
        ["held fixed", ", ".join(described["held_fixed"])],
        ["config", described["config"]],
        ["seeds", ", ".join(map(str, described["seeds"]))],
        ["not testable here", "; ".join(described["not_testable"])],
    ]
    return Table(["declared before the first run", ""], rows)


def _claims(study: StudyData, verdicts: list[Verdict]) -> list[Part]:
    if not verdicts:
        return [Text("Nothing: this study chooses a setting.")]
    reading = (
        f"Paired differences over seeds with a {CONFIDENCE:.0%} t-interval. Seen: the interval is on the claimed side and the mean is at"
        f" least the smallest effect that counts; opposite: the same on the other side. Of {len(verdicts)} intervals"
        f" {(1 - CONFIDENCE) * len(verdicts):.1g} would leave zero out by chance alone."
    )
    columns = (
        "claim",
        "outcome",
        "greater",
        "than",
        "effect",
        "interval",
        "counts from",
        "by seed",
        "why undecided",
    )
    return [
        Text(reading, small=True),
        Table(columns, [_claim_row(verdict) for verdict in verdicts]),
    ]


def _claim_row(verdict: Verdict) -> list[str]:
    claim = verdict.claim
    interval = (
        " to ".join(short(end, 3) for end in verdict.interval)
        if verdict.interval
        else "–"
    )
    smallest = f"{'x ' if claim.ratio else ''}{claim.smallest:g}"
    outcome = (
        Alarm(verdict.outcome) if verdict.outcome == "opposite" else verdict.outcome
    )
    by_seed = {
        seed: _difference(claim, a / b if claim.ratio else a - b)
        for seed, (a, b) in verdict.pairs.items()
    }
    row = [
        claim.text,
        outcome,
        claim.greater,
        claim.than,
        _effect(verdict),
        interval,
        smallest,
    ]
    return [
        *row,
        ", ".join(f"{seed}: {difference}" for seed, difference in by_seed.items())
        or "–",
        verdict.reason or "–",
    ]


def _arms(study: StudyData) -> Table:
    """Means over seeds, and their range."""
    columns = ARM_COLUMNS | study.described["mechanism"]
    rows = [
        [
            arm,
            str(_count(study, arm)),
            *(_spread(study, arm, name) for name in columns.values()),
        ]
        for arm in study.described["arms"]
    ]
    return Table(
        ["arm", "seeds", *columns], rows, ["mean over finished seeds, and their range"]
    )


def _count(study: StudyData, arm: str) -> int:
    return sum(key[0] == arm for key in study.finished)


def _values(study: StudyData, arm: str, name: str) -> list[float]:
    found = [
        measure(run, name)
        for (its_arm, _), run in study.finished.items()
        if its_arm == arm
    ]
    return [value for value in found if value is not None]


def _spread(study: StudyData, arm: str, name: str) -> str:
    values = _values(study, arm, name)
    if not values:
        return "–"
    lowest, highest = short(min(values)), short(max(values))
    return short(float(np.mean(values))) + (
        f" ({lowest} to {highest})" if lowest != highest else ""
    )


def _mechanism(study: StudyData) -> list[Part]:
    """Each run's mechanism against the variance of its last block, where several arms have both."""
    drawn: list[Part] = []
    for label, name in study.described["mechanism"].items():
        clouds, without = [], []
        for arm in study.described["arms"]:
            both = [
                (measure(run, name), measure(run, PROBE_VARIANCE), run.name)
                for (its, _), run in study.finished.items()
                if its == arm
            ]
            points = [point for point in both if None not in point]
            if points:
                x, y, names = zip(*points, strict=True)
                clouds.append(Series(arm, arm, x, y, points=True, names=names))
            else:
                without.append(arm)
        reading = "One point a run. Where the mechanism is the cause, arms with more of it lie apart in variance too."
        lacking = f" Without a value: {', '.join(without)}." if without else ""
        if len(clouds) > 1:
            drawn.append(
                Figure(
                    f"Variance against {label}",
                    reading + lacking,
                    label,
                    "variance of the last block",
                    clouds,
                    log_y=True,
                )
            )
    return drawn


def _beside_published(study: StudyData) -> list[Part]:
    parts: list[Part] = []
    for name in study.described["published"]:
        if name.startswith("tables/"):
            parts += [published.table(name), _our_table(study, name)]
        else:
            parts += [published.curves(name), _our_curves(study, name)]
    return parts


def _our_table(study: StudyData, name: str) -> Table:
    columns = published.columns(name)
    rows = [
        [arm, *(_spread(study, arm, metric) for metric in columns.values())]
        for arm in study.described["arms"]
    ]
    return Table(
        ["arm", *columns], rows, published.MEANINGS, f"{published.TITLES[name]}, ours"
    )


def _our_curves(study: StudyData, name: str) -> Figure:
    theirs = published.curves(name)
    series = []
    for (arm, _), run in study.shown.items():
        distances = find(run.scores, ("jacobian", "distance_from_identity"))
        if "variance" in name and run.lines:
            series.append(
                figures.curve(run, "variance/residual", run.name, layer=-1, group=arm)
            )
        elif "jacobian" in name and distances:
            series.append(
                Series(run.name, arm, list(range(1, len(distances) + 1)), distances)
            )
    reading = "Ours, every run; arms have a colour each."
    return Figure(
        f"{published.TITLES[name]}, ours",
        reading,
        theirs.x_label,
        theirs.y_label,
        series,
        log_y=True,
    )


def _runs(study: StudyData) -> list[Part]:
    """All runs as a table, and the figures of those of the first seed that has any."""
    parts: list[Part] = (
        [Heading("Runs"), overview.run_table(list(study.runs.values()))]
        if study.runs
        else []
    )
    runs = list(study.shown.values())
    if scored := [run for run in runs if run.scores]:
        parts.append(overview.scores_table(scored))
    if not runs:
        return parts
    seed = min(seed for _, seed in study.shown)
    first = [run for (_, its), run in study.shown.items() if its == seed]
    note = (
        f"Of seed {seed}; `sparsecod report` on a run's own directory draws the others."
    )
    return [
        *parts,
        Heading("How they learned"),
        Text(note, small=True),
        *figures.overview(first),
        *_contribution(first),
    ]


def _contribution(runs: list[RunData]) -> list[Part]:
    drawn = depth.figures(runs)
    return [Heading("What each layer contributes"), *drawn] if drawn else []
