"""A study declares what it asks and expects; its runs have the same seeds in all arms."""

import dataclasses
from pathlib import Path

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.study.study import Claim, Study, expand, load

CLAIM = Claim("deeper is larger", "last/variance/residual/-1", "deep", "flat", 0.1)
STUDY = Study(
    "Why?",
    ("width",),
    "configs/smoke.py:nano",
    {"flat": {"model.n_layers": 2}, "deep": {"model.n_layers": 3}},
    (CLAIM,),
    (),
)
SWEEPS = sorted(Path("configs/sweeps").glob("*.py"))


def test_every_seed_of_all_arms_comes_before_the_next_and_fixes_weights_and_order():
    runs = expand(dataclasses.replace(STUDY, seeds=(3, 5), changes={"steps": 40}))
    assert [run.name for run in runs] == ["flat-s3", "deep-s3", "flat-s5", "deep-s5"]
    assert [run.experiment.model.n_layers for run in runs] == [2, 3, 2, 3]
    experiments = [run.experiment for run in runs]
    assert [experiment.seed for experiment in experiments] == [3, 3, 5, 5]
    assert [experiment.data.seed for experiment in experiments] == [3, 3, 5, 5]
    assert {experiment.steps for experiment in experiments} == {40}
    assert len({run.identity for run in runs}) == 4
    # What is logged is no part of an identity.
    changes = {"steps": 40, "log.every": 3}
    logged = expand(dataclasses.replace(STUDY, seeds=(3, 5), changes=changes))
    assert logged[0].identity == runs[0].identity


@pytest.mark.parametrize("scale", ["nano", "mini", "paper"])
@pytest.mark.parametrize("file", SWEEPS, ids=[file.stem for file in SWEEPS])
def test_studies_of_this_repository_expand_at_every_scale(file, scale):
    study = load(f"{file}:{scale}")
    assert len(expand(study)) == len(study.arms) * len(study.seeds)
    assert study.claims or file.stem == "learning_rate"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"arms": {"a b": {}}}, "the arm 'a b' can't name a job"),
        ({"arms": {"a;rm": {}}}, "can't name a job"),
        ({"arms": {"a\n": {}}}, "can't name a job"),
        ({"arms": {"$(id)": {}}}, "can't name a job"),
        ({"arms": {"a" * 38: {}}}, "use at most 36 of a-z"),
        ({"arms": {}, "claims": ()}, "needs arms, and seeds that differ"),
        (
            {"arms": [{"model.n_layers": 2}]},
            r"arms of a study is .*, not of the type dict",
        ),
        ({"arms": {"flat": ["model.n_layers"]}}, "arms of a study is "),
        ({"arms": {3: {}}}, "arms of a study is "),
        ({"seeds": (0, "1")}, "seeds of a study is "),
        ({"seeds": 3}, "seeds of a study is 3"),
        ({"question": None}, "question of a study is None"),
        ({"claims": ("deeper is larger",)}, "claims of a study is "),
        ({"analyze": ["sequences"]}, "analyze of a study is "),
        (
            {"claims": (dataclasses.replace(CLAIM, smallest=float("nan")),)},
            "a smallest effect above 0",
        ),
        ({"seeds": (1, 1)}, "needs arms, and seeds that differ"),
        (
            {"claims": (dataclasses.replace(CLAIM, than="wide"),)},
            r"names \['wide'\]: name two arms",
        ),
        (
            {"claims": (dataclasses.replace(CLAIM, smallest=0.0),)},
            "a smallest effect above 0",
        ),
        (
            {"claims": (dataclasses.replace(CLAIM, smallest=1.0, ratio=True),)},
            "a smallest effect above 1",
        ),
        (
            {"claims": (CLAIM, dataclasses.replace(CLAIM, smallest=0.2))},
            "two claims have the same text",
        ),
    ],
)
def test_what_is_no_study_is_refused(change, message):
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(STUDY, **change)


def test_arms_that_are_the_same_run_or_none_are_refused():
    arms = STUDY.arms | {"again": {"model.n_layers": 2}}
    message = "again-s0 and flat-s0 are the same run: leave one arm out"
    with pytest.raises(ConfigError, match=message):
        expand(dataclasses.replace(STUDY, arms=arms))
    arms = STUDY.arms | {"typo": {"model.n_layerz": 2}}
    with pytest.raises(ConfigError, match="n_layerz"):
        expand(dataclasses.replace(STUDY, arms=arms))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("x = (", "SyntaxError"),
        ("x = 1", "get_study"),
        ("def get_study(scale): return 3", "returns no Study"),
        (
            "def get_study(scale): return {}[scale]",
            "study.py has no scale 'huge': give another",
        ),
        ("def get_study(scale): return {}['typo']", "KeyError: 'typo'"),
    ],
)
def test_files_that_declare_no_study_are_refused(text, message, tmp_path):
    (tmp_path / "study.py").write_text(text)
    with pytest.raises(ConfigError, match=message):
        load(f"{tmp_path / 'study.py'}:huge")
    with pytest.raises(ConfigError, match="there is no study"):
        load(f"{tmp_path / 'absent.py'}:nano")
