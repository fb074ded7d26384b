"""What is a study? A question, arms that differ in what is asked about, and claims that are written down before the first run."""

import dataclasses
import re
from typing import Any, get_args, get_origin, get_type_hints

from sparsecod_jax.config import Experiment, python_file
from sparsecod_jax.config.identity import identity, identity_fields
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.errors import ConfigError

NAME = re.compile(
    r"[a-z]([-a-z0-9]*[a-z0-9])?"
)  # what every engine takes for the name of a job
LONGEST_NAME = 40


@dataclasses.dataclass(frozen=True)
class Claim:
    """One number of one arm is expected above that of another."""

    text: str
    metric: str  # as `report.measures` reads it: final/bits_per_byte, scores/usefulness/score, last/variance/residual/-1
    greater: str  # the arm whose number is expected to be larger
    than: str
    smallest: float  # the least effect that counts: a difference, or where a `ratio` is claimed a factor above 1
    ratio: bool = False

    def __post_init__(self):
        _check_types(self, "a claim")


@dataclasses.dataclass(frozen=True)
class Study:
    """What a file in configs/sweeps returns."""

    question: str
    held_fixed: tuple[str, ...]
    config: str  # the config file of every run, with its scale
    arms: dict[str, dict[str, Any]]  # fields that each changes, by dotted names
    claims: tuple[Claim, ...]
    not_testable: tuple[str, ...]  # published claims that this size can't decide
    published: tuple[
        str, ...
    ] = ()  # what of published.json it covers: tables/gqa, curves/last_layer_variance_by_step/gqa
    mechanism: dict[str, str] = dataclasses.field(
        default_factory=dict
    )  # by which the cause is thought to act: metrics by their names
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)  # of every arm
    seeds: tuple[int, ...] = (0, 1, 2)  # each fixes weights and order for all arms
    analyze: dict[str, Any] = dataclasses.field(
        default_factory=dict
    )  # options of `sparsecod analyze` for finished runs

    def __post_init__(self):
        _check_types(self, "a study")
        for arm in self.arms:
            if (
                not NAME.fullmatch(f"{arm}-s0")
                or len(f"{arm}-s{max(self.seeds, default=0)}") > LONGEST_NAME
            ):
                raise ConfigError(
                    f"the arm {arm!r} can't name a job: use at most {LONGEST_NAME - 4} of a-z, 0-9 and -, a letter first"
                )
        if not self.arms or not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ConfigError("a study needs arms, and seeds that differ: give some")
        for claim in self.claims:
            unknown = [
                arm for arm in (claim.greater, claim.than) if arm not in self.arms
            ]
            no_effect = 1 if claim.ratio else 0
            if unknown or not claim.smallest > no_effect:
                raise ConfigError(
                    f"the claim {claim.text!r} names {unknown or claim.smallest}: name two arms and a smallest effect above {no_effect}"
                )
        if len({claim.text for claim in self.claims}) < len(self.claims):
            raise ConfigError(
                "two claims have the same text: reports name them by it, so word each by itself"
            )


@dataclasses.dataclass(frozen=True)
class Run:
    """One arm with one seed."""

    name: str
    arm: str
    seed: int
    experiment: Experiment
    overrides: tuple[str, ...]  # of the study's config, as `sparsecod train` takes them

    @property
    def identity(self) -> str:
        return identity_by_path(self.experiment, self.experiment.data.path)


def _check_types(instance: Any, kind: str) -> None:
    """Refuses fields that are not what their annotations say: such files are written by hand, and Python does not look."""
    for name, hint in get_type_hints(type(instance)).items():
        if not _is(value := getattr(instance, name), hint):
            wanted = hint.__name__ if isinstance(hint, type) else hint
            raise ConfigError(
                f"{name} of {kind} is {repr(value)[:80]}, not of the type {wanted}: write it as one"
            )


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of the type in an annotation; a list is as good as a tuple."""
    kind, items = get_origin(hint) or hint, get_args(hint)
    if kind is tuple:
        return isinstance(value, (tuple, list)) and all(
            _is(item, items[0]) for item in value
        )
    if kind is dict:
        return isinstance(value, dict) and all(
            _is(name, items[0]) and _is(item, items[1]) for name, item in value.items()
        )
    if kind is float:
        return type(value) in (int, float)
    return kind is Any or type(value) is kind


def identity_by_path(experiment: Experiment, path: str) -> str:
    """Equal for runs that compute the same numbers, whatever study asks for them; the data is known by a path alone."""
    return identity(identity_fields(experiment, path))


def load(spec: str) -> Study:
    """Reads `configs/sweeps/x.py:scale`, Python code that is executed.

    Raises:
      ConfigError: the file or the scale is not there, or it declares no study.
    """
    study = python_file.call(spec, python_file.STUDY)
    if not isinstance(study, Study):
        raise ConfigError(f"get_study of {spec} returns no Study: correct it")
    return study


def expand(study: Study) -> list[Run]:
    """All runs, the first seed of every arm before the second.

    Raises:
      ConfigError: a field is unknown or a value impossible, or two arms are the same run.
    """
    runs = []
    for seed in study.seeds:
        for arm, fields in study.arms.items():
            changes = {**study.changes, **fields, "seed": seed, "data.seed": seed}
            overrides = tuple(
                f"--config.{name}={value}" for name, value in changes.items()
            )
            runs.append(
                Run(
                    f"{arm}-s{seed}",
                    arm,
                    seed,
                    load_experiment(study.config, overrides),
                    overrides,
                )
            )
    seen: dict[str, str] = {}
    for run in runs:
        if (other := seen.setdefault(run.identity, run.name)) != run.name:
            raise ConfigError(
                f"{run.name} and {other} are the same run: leave one arm out"
            )
    return runs
