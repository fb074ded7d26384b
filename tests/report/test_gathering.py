"""A damaged or foreign folder is left out and named, and the others are reported."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.report.writing import write_report
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study import expand
from tests.support import disks, process, saved_runs, study_dirs, tiny_configs

RUN = expand(study_dirs.STUDY)[0]


def _plain_run(folder: Path) -> RunDir:
    run = RunDir(folder)  # pyright: ignore[reportArgumentType]
    study_dirs.write_run(run, RUN, 2.0, 8.0)
    return run


def test_an_export_beside_runs_is_left_out_and_named(tmp_path, capsys):
    run = saved_runs.run(tmp_path / "runs" / "a", tiny_configs.MODEL)
    export(str(run.path), str(tmp_path / "runs" / "a_hf"))
    page = write_report(str(tmp_path / "runs")).read_text()
    assert "1 of 1 runs finished" in page
    assert "Left out: a_hf (" in page
    assert "a_hf is left out: " in capsys.readouterr().out


def test_plain_runs_beside_a_study_are_shown(tmp_path):
    study_dirs.write(tmp_path / "depth", study_dirs.seeds(1))
    _plain_run(tmp_path / "plain")
    page = write_report(str(tmp_path)).read_text()
    assert "Rank correlations" in page
    assert "Runs outside the studies" in page
    assert "<td>plain</td>" in page


def test_a_foreign_study_is_left_out(tmp_path):
    study_dirs.write(tmp_path / "depth", study_dirs.seeds(1))
    (tmp_path / "theirs").mkdir()
    foreign = '{"title": "a study of something else"}'
    (tmp_path / "theirs" / "study.json").write_text(foreign)
    page = write_report(str(tmp_path)).read_text()
    assert "2 of 2 runs finished" in page
    assert "Left out: theirs (" in page


@pytest.mark.parametrize(
    "path",
    [
        "../../../etc",
        "/etc",
        "runs/../../x",
        "../a/b/c",
        "runs/..",
        "..",
        "",
        "../../runs/x",
        3,
        None,
    ],
)
def test_a_study_can_not_name_a_run_outside_its_folder(tmp_path, path):
    directory = study_dirs.write(tmp_path / "study", study_dirs.seeds(1))
    described = json.loads(directory.described.read_text())
    del described["checksum"]
    described["places"]["flat-s0"] = path
    directory.described.write_text(json.dumps(described))
    with pytest.raises(ConfigError, match=r"study\.json is not what a sweep writes \("):
        write_report(str(tmp_path / "study"))


def test_a_damaged_run_of_a_study_is_named_in_its_report(tmp_path):
    directory = study_dirs.write(tmp_path / "study", study_dirs.seeds(2))
    directory.run("flat-s0").config.write_text("{")
    damaged = '{"step": 1, "tokens": "many", "loss": {}}\n'
    directory.run("flat-s1").metrics.write_text(damaged)
    page = write_report(str(tmp_path / "study")).read_text()
    assert "2 of 4 runs finished: " in page
    assert "flat-s0 is left out (" in page
    assert "flat-s1 is left out (it is damaged (" in page


def test_a_single_run_that_can_not_be_read_is_refused(tmp_path):
    _plain_run(tmp_path / "run").config.write_text("[]")
    with pytest.raises(ConfigError, match=r"config\.json does not hold an object"):
        write_report(str(tmp_path / "run"))


def test_out_writes_elsewhere_and_leaves_the_run_as_it_is(tmp_path):
    _plain_run(tmp_path / "run")
    before = sorted(path.name for path in (tmp_path / "run").iterdir())
    page = write_report(str(tmp_path / "run"), str(tmp_path / "mine"))
    assert page == RunDir(tmp_path / "mine").report  # pyright: ignore[reportArgumentType]
    assert "1 of 1 runs finished" in page.read_text()
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == before


@pytest.mark.parametrize("out", ["file", "file/under", "nowhere/under/it"])
def test_a_folder_that_can_not_be_written_is_refused(tmp_path, out):
    _plain_run(tmp_path / "run")
    (tmp_path / "file").write_text("precious")
    with pytest.raises(ConfigError, match=r"can't be|is a file"):
        write_report(str(tmp_path / "run"), str(tmp_path / out))
    assert (tmp_path / "file").read_text() == "precious"
    assert not (tmp_path / "nowhere").exists()


@pytest.mark.parametrize("name", ["report.html", "report.md", "figures/loss.png"])
def test_only_a_report_is_replaced(tmp_path, name):
    """A user may keep notes, pages and figures with these names beside the studies."""
    study = study_dirs.write(tmp_path / "studies" / "depth")
    write_report(str(study.path), str(tmp_path / "again"))
    write_report(str(study.path), str(tmp_path / "again"))
    own = tmp_path / "studies" / name
    own.parent.mkdir(exist_ok=True)
    own.write_text("mine")
    with pytest.raises(
        ConfigError,
        match=r"exists and is not a report that sparsecod wrote: move it away, or give",
    ):
        write_report(str(tmp_path / "studies"))
    assert own.read_text() == "mine"


@pytest.mark.faults
def test_a_disk_that_is_full(tmp_path):
    """The earlier report stays as it was."""
    with disks.mounted(tmp_path / "disk", "16m") as disk:
        run = _plain_run(disk / "run")
        before = write_report(str(run.path)).read_bytes()
        ballast = disks.fill(disk)
        command = [sys.executable, "-m", "sparsecod_jax", "report"]
        done = subprocess.run(
            [*command, f"--workdir={run.path}"],
            cwd=process.ROOT,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1
        assert "No space left" in done.stderr
        assert "Traceback" not in done.stderr
        assert run.report.read_bytes() == before
        ballast.unlink()
        assert write_report(str(run.path)).read_bytes() == before


DAMAGES = {
    "missing": lambda file: file.unlink(),
    "empty": lambda file: file.write_bytes(b""),
    "truncated": lambda file: file.write_bytes(
        file.read_bytes()[: file.stat().st_size // 2]
    ),
    "flipped": lambda file: file.write_bytes(
        bytes(byte ^ (number == 40) for number, byte in enumerate(file.read_bytes()))
    ),
    "not UTF-8": lambda file: file.write_bytes(b"\xff" + file.read_bytes()),
    "a list": lambda file: file.write_text("[1]"),
    "a number": lambda file: file.write_text("3"),
    "empty object": lambda file: file.write_text("{}"),
    "numbers as words": lambda file: file.write_text(
        file.read_text().replace(": 1", ': "1').replace(": 2", ': {"2": []}, "_":')
    ),
    "a folder": lambda file: (file.unlink(), file.mkdir()),
    "a pipe": lambda file: (file.unlink(), os.mkfifo(file)),
    "a dangling link": lambda file: (file.unlink(), file.symlink_to("nowhere")),
    "deep": lambda file: file.write_text("[" * 10**5),
    "a huge number": lambda file: file.write_text('{"step": ' + "9" * 5000 + "}"),
}
FILES = ("config", "status", "metrics", "final", "scores")


@pytest.mark.faults
def test_damaged_runs_beside_a_whole_one(tmp_path, capsys):
    """Every kind of damage to every file of a run, in one folder.

    The whole run is reported, and nothing raises a traceback.
    """
    whole = _plain_run(tmp_path / "whole")
    for name in FILES:
        for kind, damage in DAMAGES.items():
            copy = RunDir(shutil.copytree(whole.path, tmp_path / f"{name} {kind}"))  # pyright: ignore[reportArgumentType]
            damage(
                Path(copy.analysis.scores if name == "scores" else getattr(copy, name))
            )
    page = write_report(str(tmp_path)).read_text()
    assert "<td>whole</td>" in page
    # Each names what is left out, or on the standard error lines that a metrics file lacks.
    captured = capsys.readouterr()
    printed = (captured.out + captured.err).splitlines()
    assert len(printed) > 40
    for kind in ("empty", "a list", "a pipe", "deep"):
        start = f"config {kind} is left out: "
        assert any(line.startswith(start) for line in printed)
