"""What every engine shares: what is sent, what is not, and what is collected."""

import importlib.util
import json
import re
import shutil
import time
from pathlib import Path

import pytest
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.config import counts
from sparsecod_jax.launching import launching, plans
from sparsecod_jax.parallel.devices import GIB
from sparsecod_jax.plan.findings import Budget, Compiled, Memory, Plan
from sparsecod_jax.storage import files, records
from sparsecod_jax.storage.buckets import LIMIT
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.study.study import expand, load
from tests.support import compilers, emulator, process, study_files

LACKS = [
    package
    for package in ("gcsfs", "gcp_storage_emulator")
    if importlib.util.find_spec(package) is None
]


class Notebook:
    """An engine whose scheduler is a list: what was sent is pending until a test says otherwise."""

    name = "notebook"

    def __init__(self, *, shares_files: bool):
        self.shares_files = shares_files
        self.held: dict[str, str] = {}
        self.sent: list[tuple[list[str], dict[str, bytes]]] = []

    def add_arguments(self, parser):
        parser.add_argument("--color", default="blue")

    def render(self, jobs, code_package, args):
        described = [
            [job.name, job.index, job.workdir, job.commands, job.topology]
            for job in jobs
        ]
        content = json.dumps([args.color, code_package.dirty, described])
        return {"jobs.json": content.encode()}

    def submit(self, files, jobs, args):
        names = [job.name for job in jobs]
        contents = {name: path.read_bytes() for name, path in files.items()}
        self.sent.append((names, contents))
        self.held |= dict.fromkeys(names, "pending")

    def query(self, jobs, args):
        return {job.name: self.held[job.name] for job in jobs if job.name in self.held}

    def cancel(self, jobs, args):
        for job in jobs:
            self.held.pop(job.name, None)


@pytest.fixture
def study(tokens, tmp_path):
    spec = study_files.write(tmp_path, tokens, study_files.TWO, seeds=(0, 1))
    return spec, tmp_path / "studies" / "a"


@pytest.fixture
def here():
    return Notebook(shares_files=True)


@pytest.fixture
def there():
    return Notebook(shares_files=False)


@pytest.fixture
def bucket(request):
    """A folder of the test's own in an object store."""
    if LACKS:
        pytest.skip(f"not installed: {', '.join(LACKS)}")
    with emulator.running(process.free_port()):
        yield epath.Path("gs://bucket") / request.node.name


def launch(
    engine: Notebook, subcommand: str, study, *options: str, code: int = 0
) -> None:
    spec, workdir = study
    where = [f"--sweep={spec}", f"--workdir={workdir}"]
    argv = [subcommand, *where, "--allow_dirty", *options]
    assert launching.main(engine, argv) == code


def test_what_is_done_diverged_or_held_is_not_sent(here, study, capsys):
    launch(here, "submit", study, "--color=red")
    names, rendered = here.sent[0]
    assert names == ["flat-s0", "deep-s0", "flat-s1", "deep-s1"]
    color, _, jobs = json.loads(rendered["jobs.json"])
    assert color == "red"
    assert [index for _, index, *_ in jobs] == [0, 1, 2, 3]
    (train,) = jobs[1][3]
    assert train[:4] == ["python", "-P", "-m", "sparsecod_jax"]
    assert train[4:6] == ["train", "--config=configs/smoke.py:nano"]
    assert "--config.model.n_layers=3" in train
    runs = epath.Path(study[1]) / "runs"
    run_dirs = {name: RunDir(runs / name) for name in names}
    for name in ("flat-s0", "deep-s0", "flat-s1"):
        run_dirs[name].path.mkdir(parents=True)
    records.write_json(run_dirs["flat-s0"].final, {"loss": 1.5})
    run_dirs["deep-s0"].set_status("diverged", reason="3 updates were not finite")
    run_dirs["flat-s1"].set_status("failed", reason="no space left")
    here.held = {"deep-s1": "running", "flat-s1": "whatever else"}
    capsys.readouterr()
    launch(here, "submit", study, "--color=red")
    assert capsys.readouterr().out.splitlines() == [
        "flat-s0  not sent: finished",
        "deep-s0  not sent: diverged, as it would again",
        "deep-s1  not sent: running",
        "flat-s1  sent",
    ]
    assert here.sent[1] == (["flat-s1"], rendered)
    launch(here, "status", study)
    assert capsys.readouterr().out.splitlines() == [
        "flat-s0  finished   step 6 of 6  scheduler: -",
        "deep-s0  diverged   step 0 of 6  scheduler: -",
        "flat-s1  failed     step 0 of 6  scheduler: pending",
        "deep-s1  pending    step 0 of 6  scheduler: running",
    ]
    launch(here, "collect", study)
    out = capsys.readouterr().out.splitlines()
    assert out[0].startswith("1 of 4 runs are done")
    assert out[1:] == [
        "deep-s0  diverged, train left: 3 updates were not finite",
        "flat-s1  failed, train left: no space left",
        "deep-s1  pending, train left",
    ]
    rows = json.loads((study[1] / "results.json").read_text())
    columns = ("name", "arm", "seed", "status")
    first, second = ([row[name] for name in columns] for row in rows[:2])
    assert first == ["flat-s0", "flat", 0, "finished"]
    assert second == ["deep-s0", "deep", 0, "diverged"]
    assert rows[0]["final"] == {"loss": 1.5}
    assert (study[1] / "results.csv").read_text().splitlines()[:2] == [
        "name,arm,seed,status,reason,step,steps,final.loss",
        "flat-s0,flat,0,finished,,6,6,1.5",
    ]
    launch(here, "cancel", study)
    assert here.held == {}


def test_render_writes_what_submit_sends(here, study):
    launch(here, "render", study)
    assert here.sent == []
    before = (study[1] / "notebook" / "jobs.json").read_bytes()
    launch(here, "submit", study)
    assert here.sent[0][1] == {"jobs.json": before}


def test_a_study_in_a_bucket_is_sent_from_there_with_its_data(
    there, tokens, tmp_path, bucket, capsys
):
    data = bucket / "data"
    with files.new_folder(data) as folder:
        shutil.copytree(tokens, folder, dirs_exist_ok=True)
    spec = study_files.write(tmp_path, "data/not/here", study_files.TWO)
    study = (spec, bucket / "studies" / "a")
    options = ["--topology=v5e:2x2", f"--data_path={data}", "--image=name"]
    launch(there, "render", study, *options)
    rendered = (study[1] / "notebook" / "jobs.json").read_text()
    _, _, jobs = json.loads(rendered)
    _, _, workdir, (train,), _ = jobs[0]
    assert workdir == f"{study[1]}/runs/flat-s0"
    assert train[-1] == f"--config.data.path={data}"
    records.write_json(RunDir(study[1] / "runs" / "flat-s0").final, {"loss": 1.5})
    capsys.readouterr()
    launch(there, "status", study)
    table = capsys.readouterr().out.splitlines()
    assert table[0] == "flat-s0  finished   step 6 of 6  scheduler: -"
    other = spec, bucket / "studies" / "b"
    launch(there, "render", other, *options)
    launch(there, "collect", other)  # a run of a study beside it is that run
    rows = json.loads((other[1] / "results.json").read_text())
    assert rows[0]["final"] == {"loss": 1.5}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), "--topology says which devices a run gets: give it"),
        (
            ("--topology=v5e:2x2", "--image=x"),
            r"--workdir=.* is not seen from there: use gs://BUCKET/NAME",
        ),
        (
            ("--topology=v5e:2x2", "--workdir=gs://bucket/a"),
            "say how code gets there: --image=NAME or --package=wheel",
        ),
        (
            ("--topology=v5e:2x2", "--workdir=gs://bucket/a", "--image=x"),
            "the data .* is not seen from there: copy it to a bucket",
        ),
    ],
)
def test_what_pods_can_not_see_is_refused_before_anything_is_written(
    options, message, there, study, capsys
):
    launch(there, "submit", study, *options, code=78)
    assert re.search(f"notebook submit: {message}", capsys.readouterr().err)
    assert not study[1].exists()
    assert there.sent == []


@pytest.mark.parametrize(
    "subcommand", ["submit", "render", "status", "collect", "cancel"]
)
def test_a_bucket_that_can_not_be_reached_is_reported_soon(
    subcommand, there, study, monkeypatch, capsys
):
    nobody = f"http://127.0.0.1:{process.free_port()}"
    monkeypatch.setenv("STORAGE_EMULATOR_HOST", nobody)
    options = ["--topology=v5e:2x2", "--image=x", "--data_path=gs://bucket/data"]
    began = time.monotonic()
    launch(there, subcommand, (study[0], "gs://bucket/a"), *options, code=1)
    assert time.monotonic() - began < LIMIT
    assert "gs://bucket/a can't be reached" in capsys.readouterr().err


def test_data_that_is_not_there_or_not_one_is_refused(here, tokens, tmp_path, capsys):
    spec = study_files.write(tmp_path, tmp_path / "absent", study_files.TWO)
    folder = tmp_path / "a"
    launch(here, "submit", (spec, folder), code=78)
    missing = f"there is no data in {tmp_path / 'absent'}: make it with `sparsecod data"
    assert missing in capsys.readouterr().err
    arms = f'{{"a": {{}}, "b": {{"data.path": {str(tmp_path)!r}}}}}'
    two = study_files.write(tmp_path, tokens, arms)
    launch(here, "submit", (two, folder), f"--data_path={tokens}", code=78)
    assert "--data_path would put one directory in place of" in capsys.readouterr().err
    launch(here, "status", (two, folder), code=78)
    assert "holds no study: submit it first" in capsys.readouterr().err
    assert not folder.exists()


def test_a_config_that_is_not_sent_along_is_refused(here, study, tmp_path, capsys):
    spec, workdir = study
    text = Path(spec.split(":")[0]).read_text()
    absolute = str(Path("configs/smoke.py").resolve())
    other = tmp_path / "other.py"
    other.write_text(text.replace("configs/smoke.py", absolute))
    study = (f"{other}:nano", workdir)
    launch(here, "submit", study, "--package=wheel", code=78)
    assert "is not sent along: move it to configs/" in capsys.readouterr().err


def test_a_plan_without_a_topology_counts_and_says_that_nothing_was_compiled(
    here, study, capsys
):
    launch(here, "plan", study)
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[1][:3] == ["flat-s0", "-", "-"]
    assert lines[1][5] == f"{6 * 8 * 32:,}"
    assert lines[5][:3] == ["4", "runs", f"{4 * 6 * 8 * 32:,}"]
    assert lines[6][:2] == ["not", "planned:"]
    assert not study[1].exists()
    launch(here, "plan", study, "--mfu=0", code=78)


@compilers.needs_tpu_compiler
def test_runs_that_differ_in_seeds_are_compiled_once_and_what_does_not_fit_is_refused(
    here, study, capsys
):
    launch(here, "plan", study, "--topology=v5e:2x2")
    out = capsys.readouterr().out
    assert out.count("compiling for v5e:2x2") == 2
    row = next(line for line in out.splitlines() if line.startswith("deep-s1")).split()
    assert row[1:3] == ["1", "4"]
    assert row[4:6] == ["of", "15.75"]
    launch(here, "submit", study, "--topology=v5e:2x2")
    assert "compiling" not in capsys.readouterr().out
    change = "--config.mesh.fsdp=4"
    too_large = {"fits": False, "reason": "too large", "change": change}
    for file in (study[1] / "plans").iterdir():
        plan = json.loads(file.read_text())
        file.write_text(json.dumps(plan | too_large))
    here.held = {}
    launch(here, "submit", study, "--topology=v5e:2x2", code=78)
    message = f"flat-s0 does not fit on v5e:2x2 (too large): {change}"
    assert message in capsys.readouterr().err
    assert len(here.sent) == 1


def test_totals_of_a_plan_are_sums(study):
    runs = expand(load(study[0]))
    plan = Plan(
        topology="v5e:2x4",
        devices=8,
        slices=1,
        device_kind="TPU v5 lite",
        placement="",
        mesh=config.Mesh(),
        execution=config.Execution(),
        budget=Budget(
            parameters=counts.Counts(1, 1, 1),
            tokens=1,
            flops_per_step=1.0,
            flops_convention="",
            assumed_mfu=0.4,
            step_seconds=1.0,
            chip_hours=1.25,
        ),
        compiled=Compiled(
            checkpoint_bytes=1,
            memory=Memory(arguments=2 * GIB, temporaries=GIB, limit=16 * GIB),
        ),
    )
    table = plans.table(runs, {run.name: plan for run in runs}).splitlines()
    assert table[1].split()[1:6] == ["2", "8", "3.00", "of", "16.00"]
    assert table[-1].split()[-1] == "5.0"
