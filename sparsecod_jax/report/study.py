"""What did a study find? The answer first, then the numbers that it rests on."""

import dataclasses
from typing import Any

import numpy as np

from sparsecod_jax import config
from sparsecod_jax.files import read_json
from sparsecod_jax.report import depth, figures, overview, published
from sparsecod_jax.report.claims import CONFIDENCE, Verdict, judge
from sparsecod_jax.report.document import Alarm, Document, Figure, Heading, Part, Series, Table, Text, number
from sparsecod_jax.report.measures import measure
from sparsecod_jax.report.runs import RunData, load_run
from sparsecod_jax.rundir import RunDir
from sparsecod_jax.sweep.study import Claim, data_blind_identity
from sparsecod_jax.sweep.study_dir import StudyDir

LAST_VARIANCE = "last/variance/residual/-1"
ARM_COLUMNS = {
    "bits per byte": "final/bits_per_byte",
    "last-block variance": LAST_VARIANCE,
    "usefulness": "scores/usefulness/score",
    "causal": "scores/causal/score",
    "permutation": "scores/permutation/score",
    "Jacobian": "scores/jacobian/distance_from_identity/mean",
}


@dataclasses.dataclass(frozen=True)
class StudyData:
    """A study as it lies on disk."""

    name: str
    described: dict[str, Any]  # study.json
    runs: dict[tuple[str, int], RunData]  # by arm and seed, those that have begun
    missing: list[str]  # names of those that have not

    @property
    def finished(self) -> dict[tuple[str, int], RunData]:
        return {key: run for key, run in self.runs.items() if run.status == "finished"}

    @property
    def claims(self) -> list[Claim]:
        return [Claim(**claim) for claim in self.described["claims"]]


def load_study(directory: StudyDir) -> StudyData:
    """Reads a study's runs wherever they lie; one that is another run than the study asked for is `misconfigured`."""
    described = read_json(directory.described)
    runs, missing = {}, []
    for name, entry in described["runs"].items():
        place = RunDir(directory.path / described["places"][name])
        if place.config.exists():
            run = load_run(place, name)
            other = data_blind_identity(config.from_dict(run.config)) != entry["identity"]
            runs[entry["arm"], entry["seed"]] = dataclasses.replace(run, status="misconfigured") if other else run
        else:
            missing.append(name)
    return StudyData(directory.path.name, described, runs, missing)


def document(study: StudyData) -> Document:
    """The whole report."""
    verdicts = [judge(claim, study.finished) for claim in study.claims]
    parts: list[Part] = [Text(answer(study, verdicts)), Text(_progress(study)), _protocol(study)]
    parts += [Heading("What was claimed"), *_claims(study, verdicts), Heading("Arms"), _arms(study), *_mechanism(study)]
    if study.described["published"]:
        parts += [Heading("Beside the published numbers"), published.source(), *_beside_published(study)]
    return Document(study.described["question"], [*parts, *_runs(study)])


def answer(study: StudyData, verdicts: list[Verdict]) -> str:
    """One sentence drawn from the numbers."""
    if not verdicts:
        best = min(study.finished.values(), key=lambda run: measure(run, "final/loss") or np.inf, default=None)
        return f"The lowest held-out loss is that of {best.name}." if best else "No run has finished."
    found = []
    for outcome in ("seen", "opposite", "undecided"):
        named = [_brief(verdict) for verdict in verdicts if verdict.outcome == outcome]
        found.append(f"{outcome}: {'; '.join(named) if named else 'none'}")
    return f"Of {len(verdicts)} claims tested: {'. '.join(part[0].upper() + part[1:] for part in found)}."


def _brief(verdict: Verdict) -> str:
    return verdict.claim.text + (f" ({_effect(verdict)})" if verdict.effect is not None else "")


def _effect(verdict: Verdict) -> str:
    if verdict.effect is None:
        return "–"
    return f"x {verdict.effect:.3g}" if verdict.claim.ratio else f"{verdict.effect:+.3g}"


def _progress(study: StudyData) -> str:
    """How much of the study there is; whatever is not finished is named."""
    total = len(study.described["runs"])
    unfinished = [f"{run.name} is {run.status}" for run in study.runs.values() if run.status != "finished"]
    unfinished += [f"{name} is missing" for name in study.missing]
    unscored = [run.name for run in study.finished.values() if study.described["analyze"] and not run.scores]
    text = f"{len(study.finished)} of {total} runs finished" + (f": {', '.join(unfinished)}" if unfinished else "")
    return text + (f"; not scored: {', '.join(unscored)}" if unscored else "") + "."


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
        f" least the smallest effect that counts; opposite: the same on the other side. Of {len(verdicts)} claims tested"
        f" {(1 - CONFIDENCE) * len(verdicts):.1g} would leave zero out by chance alone."
    )
    columns = ("claim", "outcome", "greater", "than", "effect", "interval", "counts from", "seeds", "why undecided")
    return [Text(reading, small=True), Table(columns, [_claim_row(verdict) for verdict in verdicts])]


def _claim_row(verdict: Verdict) -> list[str]:
    claim = verdict.claim
    interval = " to ".join(f"{end:.3g}" for end in verdict.interval) if verdict.interval else "–"
    smallest = f"{'x ' if claim.ratio else ''}{claim.smallest:g}"
    outcome = Alarm(verdict.outcome) if verdict.outcome == "opposite" else verdict.outcome
    row = [claim.text, outcome, claim.greater, claim.than, _effect(verdict), interval, smallest]
    return [*row, ", ".join(map(str, verdict.pairs)), verdict.reason or "–"]


def _arms(study: StudyData) -> Table:
    """Means over seeds, and their range."""
    columns = ARM_COLUMNS | study.described["mechanism"]
    rows = [[arm, str(_count(study, arm)), *(_spread(study, arm, name) for name in columns.values())] for arm in study.described["arms"]]
    return Table(["arm", "seeds", *columns], rows, ["mean over finished seeds, and their range"])


def _count(study: StudyData, arm: str) -> int:
    return sum(key[0] == arm for key in study.finished)


def _values(study: StudyData, arm: str, name: str) -> list[float]:
    found = [measure(run, name) for (its_arm, _), run in study.finished.items() if its_arm == arm]
    return [value for value in found if value is not None]


def _spread(study: StudyData, arm: str, name: str) -> str:
    values = _values(study, arm, name)
    if not values:
        return "–"
    return number(float(np.mean(values))) + (f" ({number(min(values))} to {number(max(values))})" if len(values) > 1 else "")


def _mechanism(study: StudyData) -> list[Part]:
    """Each run's mechanism against the variance of its last block."""
    drawn: list[Part] = []
    for label, name in study.described["mechanism"].items():
        clouds = []
        for arm in study.described["arms"]:
            runs = [run for (its_arm, _), run in study.finished.items() if its_arm == arm and measure(run, name) is not None]
            points = [(measure(run, name), measure(run, LAST_VARIANCE), run.name) for run in runs]
            if points:
                x, y, names = zip(*points, strict=True)
                clouds.append(Series(arm, arm, x, y, points=True, names=names))
        reading = "One point a run. Where the mechanism is the cause, arms with more of it lie apart in variance too."
        if clouds:
            drawn.append(Figure(f"Variance against {label}", reading, label, "variance of the last block", clouds, log_y=True))
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
    rows = [[arm, *(_spread(study, arm, metric) for metric in columns.values())] for arm in study.described["arms"]]
    meanings = ["the same columns of our arms", "usefulness is the share of blocks whose affine map raises the loss by more than 10 %"]
    return Table(["arm", *columns], rows, meanings, f"{published.title(name)}, ours")


def _our_curves(study: StudyData, name: str) -> Figure:
    theirs = published.curves(name)
    if "variance" in name:
        series = [
            figures.curve(run, "variance/residual", run.name, layer=-1, group=arm) for (arm, _), run in study.runs.items() if run.lines
        ]
    else:
        found = {key: run.scores["jacobian"]["distance_from_identity"] for key, run in study.finished.items() if run.scores}
        series = [Series(f"{arm}-s{seed}", arm, list(range(1, len(y) + 1)), y) for (arm, seed), y in found.items()]
    reading = "Ours, every run; arms have a colour each."
    return Figure(f"{published.title(name)}, ours", reading, theirs.x_label, theirs.y_label, series, log_y=True)


def _runs(study: StudyData) -> list[Part]:
    """All runs as a table, and the figures of those of the first seed."""
    if not study.runs:
        return []
    first = [run for (_, seed), run in study.runs.items() if seed == study.described["seeds"][0]]
    parts: list[Part] = [Heading("Runs"), overview.run_table(list(study.runs.values()))]
    if scored := [run for run in study.runs.values() if run.scores]:
        parts.append(overview.scores_table(scored))
    note = "Of the first seed; `sparsecod report` on a run's own directory draws the others."
    return [*parts, Heading("How they learned"), Text(note, small=True), *figures.overview(first), *_contribution(first)]


def _contribution(runs: list[RunData]) -> list[Part]:
    drawn = depth.figures(runs)
    return [Heading("What each layer contributes"), *drawn] if drawn else []
