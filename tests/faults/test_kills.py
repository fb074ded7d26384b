"""kill -9 at random moments, then the same command again.

The result is that of an uninterrupted command, bit for bit.
"""

import time
from pathlib import Path

import pytest

from sparsecod_jax import config
from tests.support import faults, study_files, tiny_configs

pytestmark = pytest.mark.faults

USUAL = 5


@pytest.fixture(scope="module")
def training(tokens):
    """The command line of a run of 30 steps with ten checkpoints."""
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
    """A finished run, and the seconds that it takes once its programs are compiled."""
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
    """Each run twice: the second kill interrupts a resumed run."""
    whole, seconds = trained
    dice = faults.dice()

    def trial(moments):
        number, first, second = moments
        words = (*training, f"--workdir={tmp_path / str(number)}")
        _kill_at(first, *words)
        _kill_at(second, *words)
        faults.finish(*words)
        assert faults.run_of(tmp_path / str(number)) == faults.run_of(whole), moments

    latest = 1.2 * seconds
    moments = [
        (number, dice.uniform(0, latest), dice.uniform(0, latest))
        for number in range(faults.trials(USUAL))
    ]
    print(f"train: {2 * faults.side_by_side(trial, moments)} kills survived")


def test_training_killed_inside_saves(training, trained, tmp_path):
    """When the folder of an unfinished checkpoint appears, or within 50 ms of that."""
    whole, _ = trained
    dice = faults.dice()

    def trial(moment):
        number, which, pause = moment
        words = (*training, f"--workdir={tmp_path / str(number)}")
        process = faults.start(*words)
        folder, begun = tmp_path / str(number) / "checkpoints", set()
        while len(begun) < which and process.poll() is None:
            begun |= {path.name for path in folder.glob("*.orbax-checkpoint-tmp*")}
            time.sleep(0.0005)
        assert len(begun) == which, "the run ended before its saves were noticed"
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
    options = [
        f"--source={corpus}",
        "--vocab_size=300",
        "--validation_fraction=0.2",
    ]

    def words(name):
        return ["data", *options, f"--out={tmp_path / name}"]

    seconds = faults.finish(*words("whole"))
    whole = faults.contents(tmp_path / "whole")
    dice = faults.dice()

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
    """With its runs, so that the next one need not wait for them.

    tests/study/test_run_local.py kills the sweep alone.
    """
    spec = study_files.write(
        tmp_path,
        tokens,
        study_files.TWO,
        steps=12,
        every=3,
        analyze={"scores": "profile", "sequences": 4},
    )

    def words(name):
        workdir = tmp_path / "studies" / name / "study"
        return ["sweep", f"--sweep={spec}", f"--workdir={workdir}"]

    faults.finish(*words("first"))
    seconds = faults.finish(*words("whole"))
    dice = faults.dice()

    def results(name):
        runs = tmp_path / "studies" / name / "study" / "runs"
        by_name = {}
        for run in runs.iterdir():
            analysis = faults.contents(run / "analysis")
            by_name[run.name] = (faults.run_of(run), analysis)
        assert set(by_name) == {"flat-s0", "deep-s0"}
        return by_name

    def trial(moment):
        number, at = moment
        _kill_at(at, *words(str(number)))
        faults.finish(*words(str(number)))
        assert results(str(number)) == results("whole"), moment

    moments = [
        (number, dice.uniform(0, seconds)) for number in range(faults.trials(USUAL))
    ]
    print(f"sweep: {faults.side_by_side(trial, moments)} kills survived")


@pytest.mark.parametrize("subcommand", ["analyze", "export"])
def test_what_reads_a_run_killed_anywhere(subcommand, trained, tmp_path):
    """Nothing half written is left, neither under the requested name nor beside it."""
    run, _ = trained
    options = []
    if subcommand == "analyze":
        options = ["--scores=profile,causal,sparsity", "--sequences=8", "--seq_len=16"]

    def words(out: Path):
        return [subcommand, f"--workdir={run}", f"--out={out / 'made'}", *options]

    for name in ("first", "whole"):
        (tmp_path / name).mkdir()
        seconds = faults.finish(*words(tmp_path / name))
    whole, dice = faults.contents(tmp_path / "whole"), faults.dice()

    def trial(moment):
        number, at = moment
        folder = tmp_path / str(number)
        folder.mkdir()
        _kill_at(at, *words(folder))
        if subcommand == "analyze" or not (folder / "made").exists():
            faults.finish(*words(folder))
        assert faults.contents(folder) == whole, moment

    moments = [
        (number, dice.uniform(0, seconds)) for number in range(faults.trials(USUAL))
    ]
    print(f"{subcommand}: {faults.side_by_side(trial, moments)} kills survived")
