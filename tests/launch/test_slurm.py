"""Studies under a real Slurm: every run once and to its end, whatever happens to it."""

import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
from etils import epath

from launch import slurm
from sparsecod_jax.launching import launching
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.run_local import sweep
from tests.support import process, slurm_here, study_files

LACKS = (
    f"no {', no '.join(slurm_here.MISSING)}:"
    " as root, apt-get install slurmctld slurmd slurm-client munge"
)
pytestmark = pytest.mark.skipif(bool(slurm_here.MISSING), reason=LACKS)

FLAT = '{"flat": {"model.n_layers": 2}}'
SEEDS = (0, 1)
STEPS, EVERY = 400, 50
CANARY = "canary-1f0c9a"


@pytest.fixture(scope="module", autouse=True)
def cluster(tmp_path_factory):
    """One node of two CPUs."""
    with slurm_here.running(tmp_path_factory.mktemp("slurm")) as box:
        yield box


@pytest.fixture(scope="module")
def undisturbed(tokens, tmp_path_factory) -> dict[str, list[dict]]:
    """The steps and the final numbers of four runs that nobody disturbed, by name."""
    folder = tmp_path_factory.mktemp("undisturbed")
    spec = write_four_runs(folder, tokens)
    study = folder / "studies" / "a"
    sweep(spec, str(study), jobs=2)
    return {run.path.name: numbers(run) for run in runs(study)}


def write_four_runs(folder: Path, tokens: Path) -> str:
    sizes = {"steps": STEPS, "every": EVERY}
    return study_files.write(folder, tokens, study_files.TWO, seeds=SEEDS, **sizes)


def runs(study: Path) -> list[RunDir]:
    return [RunDir(epath.Path(path)) for path in sorted((study / "runs").iterdir())]


def numbers(run: RunDir) -> list[dict]:
    """All metrics of a run, without times and what depends on them."""
    left_out = ("mfu", "time", "attempt", "checksum")
    records = [*run.read_metrics(), json.loads(run.final.read_text())]
    kept = []
    for record in records:
        names = [name for name in record if "second" not in name]
        kept.append({name: record[name] for name in names if name not in left_out})
    return kept


def attempts(run: RunDir) -> int:
    return len(list(run.attempts.iterdir()))


def launch(
    subcommand: str, spec: str, study: Path, *options: str, **environment: str
) -> subprocess.CompletedProcess:
    return subprocess.run(
        command(subcommand, spec, study, *options),
        **in_checkout(environment),
        capture_output=True,
        text=True,
        check=False,
    )


def command(subcommand: str, spec: str, study: Path, *options: str) -> list[str]:
    program = [sys.executable, "launch/slurm.py", subcommand]
    where = [f"--sweep={spec}", f"--workdir={study}"]
    return [*program, *where, "--allow_dirty", *options]


def in_checkout(environment: dict[str, str]) -> dict:
    """Options of a process that runs the code of this checkout."""
    path = {"PYTHONPATH": str(process.ROOT)}
    return {"cwd": process.ROOT, "env": os.environ | path | environment}


def output(
    subcommand: str, spec: str, study: Path, *options: str, **environment: str
) -> str:
    done = launch(subcommand, spec, study, *options, **environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def queue(form: str = "%i %T") -> list[str]:
    squeue = ["squeue", "--noheader", "--array", f"--format={form}"]
    done = subprocess.run(squeue, capture_output=True, text=True, check=True)
    return done.stdout.splitlines()


def wait_until(happened, seconds: float = 300) -> None:
    deadline = time.time() + seconds
    while not happened():
        assert time.time() < deadline, "\n".join(queue("%i %T %r"))
        time.sleep(0.3)


def preempt(cpus: int) -> None:
    """A job of more priority needs CPUs for a moment."""
    size = ["--partition=urgent", f"--ntasks={cpus}"]
    command = ["sbatch", *size, "--output=/dev/null", "--wrap=sleep 3"]
    subprocess.run(command, check=True)


@pytest.mark.slow
def test_a_preempted_run_is_requeued_and_all_metrics_are_those_of_undisturbed_runs(
    tokens, tmp_path, undisturbed, cluster
):
    spec = write_four_runs(tmp_path, tokens)
    study = tmp_path / "studies" / "a"
    names = ("flat-s0", "deep-s0", "flat-s1", "deep-s1")
    sent = output("submit", spec, study).splitlines()
    assert sent == [f"{name}  sent" for name in names]
    wait_until(lambda: len(list(study.glob("runs/*/checkpoints/[1-9]*"))) > 0)
    assert "running" in output("submit", spec, study).splitlines()[0]
    preempt(cpus=1)
    wait_until(lambda: not queue())
    assert {run.path.name: numbers(run) for run in runs(study)} == undisturbed
    starts = [attempts(run) for run in runs(study)]
    assert sorted(starts) == [1, 1, 1, 2]
    preempted = runs(study)[starts.index(2)]
    log = (study / "logs" / f"{preempted.path.name}.log").read_text()
    assert "stopped at step" in log
    assert "restored step" in log
    assert cluster.completed().count("JobState=COMPLETED") >= 5
    assert output("collect", spec, study).startswith("4 of 4 runs are done")
    again = output("submit", spec, study).splitlines()
    assert set(again) == {f"{name}  not sent: finished" for name in names}


@pytest.mark.slow
def test_a_script_that_hides_a_preemption_is_detected_and_the_run_sent_again(
    tokens, tmp_path, undisturbed, cluster
):
    """The negative control: to Slurm this run is completed."""
    spec = study_files.write(tmp_path, tokens, FLAT, steps=STEPS, every=EVERY)
    study = tmp_path / "studies" / "a"
    output("render", spec, study)
    (file,) = (study / "slurm").glob("runs-*.json")
    (run,) = json.loads(file.read_text())["runs"]
    script = tmp_path / "naive.sh"
    script.write_text('#!/bin/bash\ntrap : TERM\nsrun "$@"\nexit 0\n')
    naive = [
        "sbatch",
        "--job-name=naive",
        f"--output={tmp_path}/naive.log",
        f"--chdir={process.ROOT}",
        str(script),
    ]
    place = RunDir(epath.Path(run["workdir"]))
    subprocess.run([*naive, *run["commands"][0]], check=True)
    wait_until(lambda: place.newest_checkpoint() > 0)
    preempt(cpus=2)
    wait_until(lambda: not any("naive" in line for line in queue("%j")))
    assert "Name=naive JobState=COMPLETED" in " ".join(cluster.completed().split())
    assert output("status", spec, study).split()[:2] == ["flat-s0", "preempted"]
    assert "flat-s0  preempted, train left" in output("collect", spec, study)
    assert output("submit", spec, study) == "flat-s0  sent\n"
    wait_until(lambda: not queue())
    assert numbers(place) == undisturbed["flat-s0"]


@pytest.mark.slow
def test_of_six_runs_one_diverges_and_one_is_misconfigured_and_the_others_finish(
    tokens, tmp_path
):
    wild = '{"optimizer.peak_lr": 1e30, "execution.max_skipped_updates": 0}'
    others = '"a": {}, "b": {"model.n_layers": 2}, "e": {"steps": 5}, "f": {"steps": 4}'
    arms = f'{{{others}, "wild": {wild}, "small": {{"model.vocab_size": 200}}}}'
    spec = study_files.write(tmp_path, tokens, arms)
    study = tmp_path / "studies" / "a"
    output("submit", spec, study, "--at_once=2")
    wait_until(lambda: not queue())
    lines = output("collect", spec, study).splitlines()
    assert lines[0].startswith("4 of 6 runs are done")
    assert lines[1].startswith("wild-s0  diverged, train left: ")
    failed = "small-s0  failed, train left: ended with exit code 78: see "
    assert lines[2].startswith(failed)
    log = Path(lines[2].removeprefix(failed)).read_text()
    assert "vocab_size=200 is smaller than the tokenizer's" in log
    table = (study / "results.csv").read_text().splitlines()
    assert [line.split(",")[:4] for line in table[1::4]] == [
        ["a-s0", "a", "0", "finished"],
        ["wild-s0", "wild", "0", "diverged"],
    ]
    assert [attempts(run) for run in runs(study) if run.attempts.exists()] == [1] * 5
    again = output("submit", spec, study, "--sbatch=--hold")
    assert "wild-s0  not sent: diverged" in again
    sent = [line for line in again.splitlines() if line.endswith("  sent")]
    assert sent == ["small-s0  sent"]
    output("cancel", spec, study)
    wait_until(lambda: not queue())


@pytest.mark.parametrize("moment", ["before", "after"])
def test_a_submission_that_is_killed_and_repeated_sends_every_run_once(
    moment, tokens, tmp_path
):
    spec = study_files.write(tmp_path, tokens, study_files.TWO)
    study = tmp_path / "studies" / "a"
    real, stub = shutil.which("sbatch"), tmp_path / "bin" / "sbatch"
    stub.parent.mkdir()
    lines = [f'{real} --hold "$@"', f"touch {tmp_path}/there; sleep 600"]
    if moment == "before":
        lines.reverse()
    stub.write_text("\n".join(["#!/bin/bash", *lines]))
    stub.chmod(0o755)
    path = {"PATH": f"{stub.parent}:{os.environ['PATH']}"}
    first = subprocess.Popen(
        command("submit", spec, study), **in_checkout(path), start_new_session=True
    )
    wait_until((tmp_path / "there").exists)
    assert launch("submit", spec, study).returncode == 76
    os.killpg(first.pid, 9)
    first.wait()
    for _ in range(2):
        output("submit", spec, study, "--sbatch=--hold")
        assert sorted(queue("%K %T")) == ["0 PENDING", "1 PENDING"]
    output("cancel", spec, study)
    wait_until(lambda: not queue())


def test_a_cancelled_run_saves_and_does_not_come_back_until_it_is_sent(
    tokens, tmp_path
):
    spec = study_files.write(tmp_path, tokens, FLAT, steps=100_000, every=50)
    study = tmp_path / "studies" / "a"
    output("submit", spec, study)
    place = RunDir(epath.Path(study / "runs" / "flat-s0"))
    wait_until(lambda: place.newest_checkpoint() > 0)
    output("cancel", spec, study)
    wait_until(lambda: not queue())
    time.sleep(8)  # what is requeued is back at once, and starts after 5 seconds
    assert queue() == []
    assert place.read_status() == "preempted"
    assert output("submit", spec, study, "--sbatch=--hold") == "flat-s0  sent\n"
    output("cancel", spec, study)
    wait_until(lambda: not queue())


@pytest.mark.slow
def test_a_run_that_dies_without_progress_is_tried_three_times(tokens, tmp_path):
    spec = study_files.write(tmp_path, tokens, FLAT)
    study = tmp_path / "studies" / "a"
    output("submit", spec, study, XLA_FLAGS="--xla_no_such_flag")
    wait_until(lambda: not queue())
    log = study / "logs" / "flat-s0.log"
    assert log.read_text().count("Unknown flag") == 3
    reason = (
        "3 attempts in a row died without a newer checkpoint, the last with exit code "
    )
    assert f"flat-s0  failed, train left: {reason}" in output("collect", spec, study)
    assert output("submit", spec, study) == "flat-s0  sent\n"
    wait_until(lambda: not queue())
    assert output("collect", spec, study).startswith("1 of 1 runs are done")


def test_hostile_values_arrive_unchanged_and_secrets_nowhere(tokens, tmp_path):
    hostile = "a b;touch PWNED\n$(touch PWNED)'\"`id`%j\\n"
    data = tmp_path / hostile
    shutil.copytree(tokens, data)
    study = tmp_path / "studies" / 'it\'s a "study"; $(touch PWNED)'
    spec = study_files.write(tmp_path, data, FLAT)
    printed = [
        launch(subcommand, spec, study, WANDB_API_KEY=CANARY)
        for subcommand in ("plan", "render", "submit", "status")
    ]
    wait_until(lambda: not queue())
    printed.append(launch("collect", spec, study, WANDB_API_KEY=CANARY))
    assert [done.returncode for done in printed] == [0] * 5, printed
    (run,) = runs(study)
    assert json.loads(run.config.read_text())["data"]["path"] == str(data)
    assert run.read_status() == "finished"
    assert not list(tmp_path.rglob("PWNED"))
    assert not (process.ROOT / "PWNED").exists()
    written = [file.read_bytes() for file in study.rglob("*") if file.is_file()]
    assert len(written) > 10
    assert not [content for content in written if CANARY.encode() in content]
    assert CANARY not in "".join(done.stdout + done.stderr for done in printed)


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("two\nlines", (), "choose a --workdir"),
        ("100%j", (), "choose a --workdir"),
        ("a\\b", (), "choose a --workdir"),
        ("a", ("--nodes=0",), "--nodes=0 is below 1"),
        ("a", ("--sbatch=-p gpu",), "is no long option"),
        ("a", ("--topology=v5p:2x2x1",), "is no matter for Slurm"),
        (
            "a",
            ("--sbatch=--partition=nowhere",),
            "invalid partition specified: nowhere",
        ),
        ("a", ("--image=x",), "--image is for pods"),
    ],
)
def test_what_slurm_can_not_do_is_refused(
    folder, options, message, tokens, tmp_path, capsys
):
    spec = study_files.write(tmp_path, tokens, study_files.TWO)
    study = tmp_path / folder
    where = [f"--sweep={spec}", f"--workdir={study}"]
    argv = ["submit", *where, "--allow_dirty", *options]
    code = launching.main(slurm.Slurm(), argv)
    # Refused before anything is written, or by sbatch.
    is_written = (study / "study.json").exists()
    assert (code, is_written) in ((78, False), (1, True))
    assert message in capsys.readouterr().err
    assert queue() == []


@pytest.mark.slow
def test_all_processes_of_a_run_train_stop_together_and_resume_and_one_scores(
    tokens, tmp_path
):
    analyze = {"scores": "profile", "sequences": 4, "seq_len": 16}
    sizes = {"steps": STEPS, "every": EVERY}
    spec = study_files.write(tmp_path, tokens, FLAT, analyze=analyze, **sizes)
    study = tmp_path / "studies" / "a"
    output("submit", spec, study, "--processes=2")
    run = RunDir(epath.Path(study / "runs" / "flat-s0"))
    wait_until(lambda: run.newest_checkpoint() > 0)
    preempt(cpus=1)
    wait_until(lambda: not queue())
    assert attempts(run) == 2
    assert "stopped at step" in (study / "logs" / "flat-s0.log").read_text()
    assert [line["step"] for line in run.read_metrics()] == list(range(1, STEPS + 1))
    assert json.loads(run.manifest.read_text())["devices"]["processes"] == 2
    assert run.analysis.scores.exists()
    assert output("collect", spec, study).startswith("1 of 1 runs are done")


def test_runs_of_a_wheel_use_the_code_that_was_sent(tokens, tmp_path):
    spec = study_files.write(tmp_path, tokens, FLAT)
    study = tmp_path / "studies" / "a"
    output("submit", spec, study, "--package=wheel")
    wait_until(lambda: not queue())
    (run,) = runs(study)
    assert "+g" in json.loads(run.manifest.read_text())["sparsecod_jax"]
    (file,) = (study / "slurm").glob("runs-*.json")
    code_package = json.loads(file.read_text())["code_package"]
    assert code_package["sha256"][:16] == Path(code_package["wheel"]).parent.name
