"""What is a study? A question, arms to compare, and claims made in advance.

Study: declared in a file of configs/sweeps, and expanded to one run per arm and seed.
"""

import dataclasses
import re
from typing import Any, get_args, get_origin, get_type_hints

from sparsecod_jax.config import Experiment, python_file
from sparsecod_jax.config.identity import identity, identity_fields
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.errors import ConfigError

# What every engine accepts as the name of a job.
NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
LONGEST_NAME = 40


@dataclasses.dataclass(frozen=True)
class Claim:
    """One metric of one arm is expected to be larger than that of another."""

    text: str
    # As `report.measures` reads it: final/bits_per_byte, scores/usefulness/score,
    # last/variance/residual/-1.
    metric: str
    greater: str  # the arm whose metric is expected to be larger
    than: str
    # The minimum effect of interest: a difference, or for a `ratio` a factor above 1.
    smallest: float
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
    # Names in published.json of the numbers it covers: tables/gqa,
    # curves/last_layer_variance_by_step/gqa.
    published: tuple[str, ...] = ()
    # How the cause is thought to act: metrics by their labels.
    mechanism: dict[str, str] = dataclasses.field(default_factory=dict)
    changes: dict[str, Any] = dataclasses.field(default_factory=dict)  # of every arm
    seeds: tuple[int, ...] = (0, 1, 2)  # each fixes weights and order for all arms
    # Options of `sparsecod analyze` for finished runs.
    analyze: dict[str, Any] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        _check_types(self, "a study")
        _check_arms(self)
        _check_claims(self)


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
        """Equal for runs that compute the same numbers."""
        return identity_by_path(self.experiment, self.experiment.data.path)


def _check_arms(study: Study) -> None:
    """Refuses arms that can't name a job, and seeds that are the same."""
    last_seed = max(study.seeds, default=0)
    for arm in study.arms:
        is_name = NAME.fullmatch(f"{arm}-s0") is not None
        if not is_name or len(f"{arm}-s{last_seed}") > LONGEST_NAME:
            raise ConfigError(
                f"the arm {arm!r} can't name a job:"
                f" use at most {LONGEST_NAME - 4} of a-z, 0-9 and -, a letter first"
            )
    seeds_differ = len(set(study.seeds)) == len(study.seeds)
    if not study.arms or not study.seeds or not seeds_differ:
        raise ConfigError("a study needs arms, and seeds that differ: give some")


def _check_claims(study: Study) -> None:
    """Refuses claims of absent arms, without an effect, or with the same text."""
    for claim in study.claims:
        unknown = [arm for arm in (claim.greater, claim.than) if arm not in study.arms]
        no_effect = 1 if claim.ratio else 0
        # Written so that NaN is refused, too.
        has_effect = claim.smallest > no_effect
        if unknown or not has_effect:
            raise ConfigError(
                f"the claim {claim.text!r} names {unknown or claim.smallest}:"
                f" name two arms and a smallest effect above {no_effect}"
            )
    if len({claim.text for claim in study.claims}) < len(study.claims):
        raise ConfigError(
            "two claims have the same text, by which reports name them:"
            " word each by itself"
        )


def _check_types(instance: Any, kind: str) -> None:
    """Refuses fields of other types than their annotations.

    Study files are written by hand, and Python does not check them.
    """
    for name, hint in get_type_hints(type(instance)).items():
        value = getattr(instance, name)
        if _is(value, hint):
            continue
        wanted = hint.__name__ if isinstance(hint, type) else hint
        raise ConfigError(
            f"{name} of {kind} is {repr(value)[:80]}, not of the type {wanted}:"
            " write it as one"
        )


def _is(value: Any, hint: Any) -> bool:
    """Whether a value is of the type in an annotation; a list is as good as a tuple."""
    kind = get_origin(hint) or hint
    items = get_args(hint)
    if kind is Any:
        return True
    if kind is tuple:
        is_sequence = isinstance(value, (tuple, list))
        return is_sequence and all(_is(item, items[0]) for item in value)
    if kind is dict:
        return isinstance(value, dict) and all(
            _is(name, items[0]) and _is(item, items[1]) for name, item in value.items()
        )
    if kind is float:
        return type(value) in (int, float)
    return type(value) is kind


def identity_by_path(experiment: Experiment, path: str) -> str:
    """Equal for runs that compute the same numbers, whatever study asks for them.

    The data is known by its path alone.
    """
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
            runs.append(_run(study, arm, fields, seed))
    names: dict[str, str] = {}  # by identity
    for run in runs:
        first = names.setdefault(run.identity, run.name)
        if first != run.name:
            raise ConfigError(
                f"{run.name} and {first} are the same run: leave one arm out"
            )
    return runs


def _run(study: Study, arm: str, fields: dict[str, Any], seed: int) -> Run:
    changes = {**study.changes, **fields, "seed": seed, "data.seed": seed}
    overrides = tuple(f"--config.{name}={value}" for name, value in changes.items())
    experiment = load_experiment(study.config, overrides)
    return Run(f"{arm}-s{seed}", arm, seed, experiment, overrides)
