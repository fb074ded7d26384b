"""kill -9 at random moments, then the same command again: the result is that of an uninterrupted one, bit for bit."""

import time
from pathlib import Path

import pytest

from sparsecod_jax import config
from tests.support import faults, study_files, tiny_configs

pytestmark = pytest.mark.faults

USUAL = 5


@pytest.fixture(scope="module")
def training(tokens):
    """The words of a run of 30 steps with ten checkpoints."""
    experiment = tiny_configs.experiment(
        steps=30,
        mesh=config.Mesh(1, 1, 1, 1),
        data={"path": str(tokens)},
        checkpoint={"every": 3},
        evaluation={"every": 10},
    )
    return ["train", "--config=configs/smoke.py", *tiny_configs.flags(experiment)]


@pytest.fixture(scope="module")
def trained(training, tmp_path_factory):
    """A finished run, and the seconds that it takes when its programs are compiled."""
    folder = tmp_path_factory.mktemp("trained")
    faults.finish(*training, f"--workdir={folder / 'first'}")
    seconds = faults.finish(*training, f"--workdir={folder / 'run'}")
    assert faults.run_of(folder / "run") == faults.run_of(folder / "first")
    return folder / "run", seconds


def _kill_at(moment: float, *argv: str) -> None:
    process = faults.start(*argv)
    time.sleep(moment)
    faults.kill(process)


def test_training_killed_anywhere(training, trained, tmp_path):
    """Twice each: the second kill meets a resume."""
    whole, seconds = trained
    dice = faults.dice()

    def trial(moments):
        number, first, second = moments
        words = (*training, f"--workdir={tmp_path / str(number)}")
        _kill_at(first, *words)
        _kill_at(second, *words)
        faults.finish(*words)
        assert faults.run_of(tmp_path / str(number)) == faults.run_of(whole), moments

    moments = [
        (number, *(dice.uniform(0, 1.2 * seconds) for _ in range(2)))
        for number in range(faults.trials(USUAL))
    ]
    print(f"train: {2 * faults.side_by_side(trial, moments)} kills survived")


def test_training_killed_inside_saves(training, trained, tmp_path):
    """As soon as the folder of an unfinished checkpoint appears, or up to a twentieth of a second later."""
    whole, _ = trained
    dice = faults.dice()

    def trial(moment):
        number, which, pause = moment
        words = (*training, f"--workdir={tmp_path / str(number)}")
        process = faults.start(*words)
        folder, seen = tmp_path / str(number) / "checkpoints", set()
        while len(seen) < which and process.poll() is None:
            seen |= {path.name for path in folder.glob("*.orbax-checkpoint-tmp*")}
            time.sleep(0.0005)
        assert len(seen) == which, "the run ended before its saves were seen"
        time.sleep(pause)
        faults.kill(process)
        faults.finish(*words)
        assert faults.run_of(tmp_path / str(number)) == faults.run_of(whole), moment

    moments = [
        (number, dice.randint(1, 4), dice.uniform(0, 0.05))
        for number in range(faults.trials(USUAL))
    ]
    print(f"inside saves: {faults.side_by_side(trial, moments)} kills survived")


def test_data_killed_anywhere(corpus, tmp_path):
    def words(name):
        return [
            "data",
            f"--source={corpus}",
            f"--out={tmp_path / name}",
            "--vocab_size=300",
            "--validation_fraction=0.2",
        ]

    seconds = faults.finish(*words("whole"))
    whole, dice = faults.contents(tmp_path / "whole"), faults.dice()

    def trial(moment):
        number, at = moment
        _kill_at(at, *words(str(number)))
        faults.finish(*words(str(number)))
        made = faults.contents(tmp_path / str(number))
        assert made == whole, moment

    moments = [
        (number, dice.uniform(0, seconds)) for number in range(faults.trials(USUAL))
    ]
    print(f"data: {faults.side_by_side(trial, moments)} kills survived")


def test_a_sweep_killed_anywhere(tokens, tmp_path):
    """With its runs, so that the next one need not wait for them; test_local.py kills the sweep alone."""
    spec = study_files.write(
        tmp_path,
        tokens,
        study_files.TWO,
        steps=12,
        every=3,
        analyze={"scores": "profile", "sequences": 4},
    )

    def words(name):
        return [
            "sweep",
            f"--sweep={spec}",
            f"--workdir={tmp_path / 'studies' / name / 'study'}",
        ]

    faults.finish(*words("first"))
    seconds = faults.finish(*words("whole"))
    dice = faults.dice()

    def found(name):
        runs = tmp_path / "studies" / name / "study" / "runs"
        each = {
            run.name: (faults.run_of(run), faults.contents(run / "analysis"))
            for run in runs.iterdir()
        }
        assert set(each) == {"flat-s0", "deep-s0"}
        return each

    def trial(moment):
        number, at = moment
        _kill_at(at, *words(str(number)))
        faults.finish(*words(str(number)))
        assert found(str(number)) == found("whole"), moment

    moments = [
        (number, dice.uniform(0, seconds)) for number in range(faults.trials(USUAL))
    ]
    print(f"sweep: {faults.side_by_side(trial, moments)} kills survived")


@pytest.mark.parametrize("verb", ["analyze", "export"])
def test_what_reads_a_run_killed_anywhere(verb, trained, tmp_path):
    """Nothing half written is left, neither under the name that was asked for nor beside it."""
    options = {
        "analyze": [
            "--scores=profile,causal,sparsity",
            "--sequences=8",
            "--seq_len=16",
        ],
        "export": [],
    }

    def words(out: Path):
        return [
            verb,
            f"--workdir={trained[0]}",
            f"--out={out / 'made'}",
            *options[verb],
        ]

    for name in ("first", "whole"):
        (tmp_path / name).mkdir()
        seconds = faults.finish(*words(tmp_path / name))
    whole, dice = faults.contents(tmp_path / "whole"), faults.dice()

    def trial(moment):
        number, at = moment
        folder = tmp_path / str(number)
        folder.mkdir()
        _kill_at(at, *words(folder))
        if verb == "analyze" or not (folder / "made").exists():
            faults.finish(*words(folder))
        assert faults.contents(folder) == whole, moment

    moments = [
        (number, dice.uniform(0, seconds)) for number in range(faults.trials(USUAL))
    ]
    print(f"{verb}: {faults.side_by_side(trial, moments)} kills survived")
