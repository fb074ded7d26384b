"""The subcommand `analyze`, end to end."""

import contextlib
import dataclasses
import json
from typing import Any

import jax
import numpy as np
import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.analysis import scores
from sparsecod_jax.analysis.catalogue import CATALOGUE
from sparsecod_jax.analysis.scores import Options, analyze
from sparsecod_jax.cli import main
from sparsecod_jax.errors import ConfigError, Fenced
from sparsecod_jax.report.measures import find
from sparsecod_jax.storage.ownership import locked
from sparsecod_jax.storage.records import read_record
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study_dir import is_scored
from sparsecod_jax.train.loop import train
from tests.support import subjects, tiny_configs

DENSE = pytest.mark.parametrize("run", ["dense"], indirect=True)
SMALL: dict[str, Any] = {"sequences": 12, "seq_len": 16}


def _read(path):
    def refuse(constant):
        raise AssertionError(f"{constant} is not JSON")

    return json.loads(path.read_text(), parse_constant=refuse)


def _catalogue_paths():
    """Where reports and cards look in scores.json."""
    for score in CATALOGUE.values():
        for row in (*score.columns, *score.curves, *score.matrices, *score.card):
            yield row.path
        for curve in score.curves:
            yield from filter(None, (curve.predicted, curve.probe_length))
        for metric in (*score.headlines.values(), score.across_studies or ""):
            root, *path = metric.split("/")
            if root == "scores":
                yield tuple(path)


def test_all_scores_of_a_run(run, tmp_path):
    path = analyze(str(run.path), **SMALL, out=str(tmp_path / "analysis"))
    result = _read(path)
    layers = result["model"]["n_layers"]
    experts = {path for path in _catalogue_paths() if "experts" in path}
    lacking = {path for path in _catalogue_paths() if find(result, path) is None}
    assert lacking == (set() if "experts" in result["sparsity"] else experts)
    for section in (
        result["variance"]["residual"],
        result["block_influence"],
        result["usefulness"]["loss_ratio"],
        result["theory"]["predicted"],
    ):
        assert len(section) == layers
    for name in ("causal", "permutation"):
        assert np.shape(result[name]["matrix"]) == (layers, layers)
        assert result[name]["score"] > 0
    assert len(result["jacobian"]["distance_from_identity"]) == layers
    assert result["jacobian"]["method"] == "exact"
    assert set(result["usefulness"]) >= {"score", "ci95", "in_sample", "as_published"}
    assert ("experts" in result["sparsity"]) == (
        json.loads(run.config.read_text())["model"]["n_experts"] > 0
    )
    assert result["sequences"] == {
        "profile": 12,
        "usefulness": 12,
        "causal": 12,
        "permutation": 12,
        "jacobian": 4,
        "sparsity": 8,
        "theory": 4,
    }
    tokens = np.load(tmp_path / "analysis" / "tokens.npy")
    assert (tokens.dtype, tokens.shape) == (np.int32, (12, 16))
    assert result["data"]["sequences"] == 12
    assert result["model"]["step"] == 20
    measured, predicted = (
        np.array(result["theory"]["measured"]),
        np.array(result["theory"]["predicted"]),
    )
    np.testing.assert_allclose(
        result["theory"]["relative_error"], predicted / measured - 1
    )
    logged = run.read_metrics()[-1]["variance/residual"]
    np.testing.assert_allclose(
        result["variance"]["residual"], logged, rtol=0.3
    )  # other tokens, the state one update later

    everything = analyze(
        str(run.path),
        tokens=str(tmp_path / "analysis" / "tokens.npy"),
        scores="sparsity",
        every_sequence=True,
        out=str(tmp_path / "every"),
    )
    assert _read(everything)["sequences"] == {"sparsity": 12}

    again = analyze(
        str(run.path),
        tokens=str(tmp_path / "analysis" / "tokens.npy"),
        scores="causal,profile",
        out=str(tmp_path / "again"),
    )
    repeated = _read(again)
    assert repeated["causal"] == result["causal"]
    assert repeated["baseline_loss"] == result["baseline_loss"]
    assert "permutation" not in repeated


@DENSE
def test_goes_on_after_the_scores_that_are_there(run, tmp_path, capsys, monkeypatch):
    out = str(tmp_path / "analysis")
    analyze(str(run.path), scores="profile", **SMALL, out=out)

    def fails(*_):
        raise RuntimeError("the machine is gone")

    monkeypatch.setitem(scores.SCORES, "permutation", fails)
    with pytest.raises(RuntimeError):
        analyze(str(run.path), scores="profile,causal,permutation", **SMALL, out=out)
    monkeypatch.undo()
    before = _read(tmp_path / "analysis" / "scores.json")
    assert {"variance", "causal"} < set(before)
    capsys.readouterr()
    result = _read(
        analyze(str(run.path), scores="profile,causal,permutation", **SMALL, out=out)
    )
    assert "profile is there already" in capsys.readouterr().out
    assert result["causal"] == before["causal"]
    assert result["permutation"]["score"] > 0
    at_once = analyze(
        str(run.path), scores="profile,causal,permutation", **SMALL, out=f"{out}_2"
    )
    assert (tmp_path / "analysis" / "scores.json").read_bytes() == at_once.read_bytes()


@DENSE
def test_a_score_of_fewer_sequences_is_done_again(run, tmp_path):
    options = {"scores": "sparsity", **SMALL, "out": str(tmp_path / "analysis")}
    assert _read(analyze(str(run.path), **options))["sequences"] == {"sparsity": 8}
    assert _read(analyze(str(run.path), **options, every_sequence=True))[
        "sequences"
    ] == {"sparsity": 12}


@DENSE
def test_a_jacobian_by_another_method_is_done_again(run, tmp_path):
    options = {"scores": "jacobian", **SMALL, "out": str(tmp_path / "analysis")}
    assert _read(analyze(str(run.path), **options))["jacobian"]["method"] == "exact"
    assert (
        _read(analyze(str(run.path), **options, jacobian="estimate"))["jacobian"][
            "method"
        ]
        == "estimate"
    )
    assert (
        _read(analyze(str(run.path), **options))["jacobian"]["method"] == "estimate"
    )  # nothing else is asked for


@DENSE
def test_scores_of_another_model_are_not_mixed(run, tokens, tmp_path):
    out = str(tmp_path / "analysis")
    analyze(str(run.path), scores="profile", **SMALL, out=out)
    model = config.from_dict(read_record(run.config)).model
    other = tiny_configs.experiment(
        steps=20,
        seed=1,
        model=model,
        data={"path": str(tokens)},
        checkpoint={"every": 20},
    )
    train(other, str(tmp_path / "other"))
    with pytest.raises(
        ConfigError, match=r"holds scores of another model \(weights differ\)"
    ):
        analyze(str(tmp_path / "other"), scores="profile", **SMALL, out=out)


@DENSE
def test_scores_of_other_sequences_are_not_mixed(run, tmp_path):
    out = str(tmp_path / "analysis")
    analyze(str(run.path), scores="profile", **SMALL, out=out)
    before = (tmp_path / "analysis" / "tokens.npy").read_bytes()
    with pytest.raises(
        ConfigError,
        match=r"holds scores of another data \(seed, digest differ\): move it away or give --out",
    ):
        analyze(str(run.path), scores="causal", **SMALL, seed=1, out=out)
    assert (tmp_path / "analysis" / "tokens.npy").read_bytes() == before


@DENSE
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"scores": "profile,usefullness"},
            r"--scores names \['usefullness'\]: choose from profile,",
        ),
        ({"tokens": "nowhere.npy"}, "--token_file=nowhere.npy can't be read"),
        ({"tokens": "FLOATS"}, "does not hold integers"),
        ({"tokens": "FLAT"}, "does not hold integers"),
        ({"tokens": "EMPTY"}, "can't be read"),
        ({"tokens": "PICKLED"}, "can't be read"),
        (
            {"tokens": "GOOD", "sequences": 3, "split": "train"},
            "so --sequences and --split can't: leave one out",
        ),
        ({"tokens": "LARGE"}, "reach from 999 to 999"),
        ({"tokens": "BEYOND"}, "reach from 0 to 4294967301"),
        (
            {"sequences": 0},
            "can't be scored: give --sequences and --seq_len of at least 2",
        ),
        (
            {"seq_len": 1},
            "can't be scored: give --sequences and --seq_len of at least 2",
        ),
        ({"seed": -1}, "--seed=-1 is negative"),
        ({"sequences": 2, "seq_len": 8}, "can't fit a map"),
        ({"sequences": 10**6}, "lower --sequences or --seq_len"),
    ],
)
def test_mistakes_are_refused_before_anything_is_written(
    run, tmp_path, options, message
):
    arrays = {
        "FLOATS": np.zeros((3, 4)),
        "FLAT": np.arange(5),
        "PICKLED": np.array([{}]),
        "GOOD": np.zeros((3, 4), int),
        "LARGE": np.full((2, 4), 999),
        "BEYOND": np.array([[0, 1], [2, 2**32 + 5]]),
    }
    for name, array in arrays.items():
        np.save(tmp_path / f"{name}.npy", array, allow_pickle=True)
    (tmp_path / "EMPTY.npy").write_bytes(b"")
    if (tmp_path / f"{options.get('tokens')}.npy").exists():
        options = options | {"tokens": str(tmp_path / f"{options['tokens']}.npy")}
    with pytest.raises(ConfigError, match=message):
        analyze(str(run.path), **options, out=str(tmp_path / "analysis"))
    assert not (tmp_path / "analysis").exists()


@DENSE
@pytest.mark.parametrize("name", ["scores.json", "tokens.npy", "notes.txt"])
def test_a_folder_with_somebody_elses_files_is_refused_and_left_alone(
    run, tmp_path, name
):
    (tmp_path / name).write_text('{"mine": 1}')
    with pytest.raises(
        ConfigError,
        match=r"holds files but not scores of a model: choose another --out",
    ):
        analyze(str(run.path), scores="profile", **SMALL, out=str(tmp_path))
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {
        name: '{"mine": 1}'
    }


@DENSE
def test_the_second_of_two_that_score_at_once_is_turned_away(run, tmp_path):
    out = epath.Path(tmp_path) / "analysis"
    analyze(str(run.path), scores="profile", **SMALL, out=str(out))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with (
        locked(out),
        pytest.raises(
            Fenced,
            match=r"another process is at work in .*/analysis: wait for it, or stop it first",
        ),
    ):
        analyze(str(run.path), scores="sparsity", **SMALL, out=str(out))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@DENSE
def test_one_that_was_killed_before_its_first_score_goes_on(run, tmp_path, monkeypatch):
    def fails(*_):
        raise KeyboardInterrupt

    out = tmp_path / "analysis"
    monkeypatch.setitem(scores.SCORES, "profile", fails)
    with pytest.raises(KeyboardInterrupt):
        analyze(str(run.path), scores="profile", **SMALL, out=str(out))
    monkeypatch.undo()
    (out / "tokens.npy").unlink()
    assert _read(analyze(str(run.path), scores="profile", **SMALL, out=str(out)))[
        "sequences"
    ] == {"profile": 12}


@DENSE
def test_scores_that_were_changed_are_not_gone_on_with(run, tmp_path):
    file = epath.Path(tmp_path) / "analysis" / "scores.json"
    analyze(str(run.path), scores="profile", **SMALL, out=str(file.parent))
    assert is_scored(RunDir(epath.Path(tmp_path)), "profile")
    file.write_text(file.read_text().replace("0.", "1.", 1))
    with pytest.raises(
        ConfigError,
        match=r"scores\.json was changed after it was written: restore it from a copy",
    ):
        analyze(str(run.path), scores="sparsity", **SMALL, out=str(file.parent))
    assert not is_scored(RunDir(epath.Path(tmp_path)), "profile")


@DENSE
def test_a_jacobian_of_an_earlier_version_is_computed_again(run, tmp_path, capsys):
    """It may be of a compiler that was wrong, and nothing tells."""
    file = epath.Path(tmp_path) / "analysis" / "scores.json"
    options = {**SMALL, "scores": "profile,jacobian", "out": str(file.parent)}
    fresh = _read(analyze(str(run.path), **options))["jacobian"]
    old = json.loads(file.read_text())
    for name in ("checksum", "computed_with"):
        del old[name]
    old["jacobian"]["distance_from_identity"][0] = 123.0
    file.write_text(json.dumps(old))
    assert _read(analyze(str(run.path), **options))["jacobian"] == fresh
    said = capsys.readouterr().out
    assert (
        "the jacobian that is there may come from a faulty compiler and is computed again"
        in said
    )
    assert said.count("profile is there already") == 1


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="holds no run: give a --workdir"):
        analyze(str(tmp_path))


@DENSE
def test_the_command_line(run, tmp_path, capsys, monkeypatch):
    out = tmp_path / "analysis"
    main(
        [
            "analyze",
            f"--workdir={run.path}",
            "--scores=permutation",
            "--sequences=4",
            "--seq_len=8",
            f"--out={out}",
        ]
    )
    assert f"scores: {out / 'scores.json'}" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        main(["analyze", "--help"])
    assert ",".join(scores.SCORES) in "".join(capsys.readouterr().out.split())
    monkeypatch.setenv("SLURM_NTASKS", "2")
    with pytest.raises(SystemExit) as stopped:
        main(["analyze", f"--workdir={run.path}"])
    assert stopped.value.code == 78
    assert (
        "analyze is one process, with all the devices of its host: start it once"
        in capsys.readouterr().err
    )


@contextlib.contextmanager
def _counted_programs():
    compiled = []

    def listener(event: str, duration_secs: float, **_: str | int) -> None:
        if event == "/jax/core/compile/backend_compile_duration":
            compiled.append(event)

    jax.monitoring.register_event_duration_secs_listener(listener)
    try:
        yield compiled
    finally:
        jax.monitoring.unregister_event_duration_listener(listener)


@pytest.mark.parametrize("name", scores.SCORES)
def test_the_number_of_programs_does_not_depend_on_depth(name):
    counts = []
    for depth in (2, 3, 5):  # the first also compiles what the others share
        cfg = dataclasses.replace(tiny_configs.MODEL, n_layers=depth)
        tokens = subjects.tokens(cfg, sequences=8)
        with (
            subjects.analysed(cfg, tokens, dtype="float32") as subject,
            _counted_programs() as compiled,
        ):
            scores.SCORES[name](subject, tokens, Options(0, None))
        counts.append(len(compiled))
    assert counts[1] == counts[2] > 0
