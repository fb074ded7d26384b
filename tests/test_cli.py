"""The command line as a user meets it: help, mistakes with exit codes, text to report."""

import json
import os
import re
import subprocess
import sys

import pytest

from sparsecod_jax.cli import main
from sparsecod_jax.shell import arguments
from tests.support import process, study_dirs, tiny_configs, wrong_inputs

ENVIRONMENT = os.environ | {
    "XLA_FLAGS": f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count=1"
}


def _sparsecod(*words, code=0):
    """Runs a subcommand and returns its output and error text."""
    command = [sys.executable, "-m", "sparsecod_jax", *map(str, words)]
    done = subprocess.run(
        command,
        cwd=process.ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code, (
        f"exit code {done.returncode}, not {code}:\n{done.stdout}{done.stderr}"
    )
    return done.stdout, done.stderr


def _refused(*words, code=78):
    """The one sentence with which a subcommand refuses, and nothing else."""
    output, error = _sparsecod(*words, code=code)
    assert output == ""
    assert error.count("\n") == 1, error
    return error.strip()


def test_help_of_every_subcommand():
    text, _ = _sparsecod("--help")
    names = re.findall(r"^    (\w+) +\w", text, re.MULTILINE)
    assert {"data", "train", "report"} <= set(names)
    for name in names:
        text, _ = _sparsecod(name, "--help")
        assert text.startswith(f"usage: sparsecod {name} ")
        options = re.findall(
            r"^  (--\w+)(?: [A-Z_]+)?(?:  +|\n {10,})\S", text, re.MULTILINE
        )  # an option and what it is for
        assert set(options) == set(re.findall(r"^  (--\w+)", text, re.MULTILINE))
        assert options


def test_no_subcommand_is_given():
    _, error = _sparsecod(code=2)
    assert "required: SUBCOMMAND" in error


@pytest.mark.parametrize(
    ("words", "unknown"),
    [
        (
            ["train", "--config=configs/smoke.py", "--workdir=x", "--steps=3"],
            "--steps=3",
        ),
        (
            [
                "train",
                "--config=configs/smoke.py",
                "--workdir=x",
                "--config.steps",
                "3",
            ],
            "3",
        ),
        (
            ["train", "--config=configs/smoke.py", "--workdir=x", "--work=y"],
            "--work=y",
        ),  # no abbreviations
        (["data", "--source=sotu", "--out=x", "--vocab=300"], "--vocab=300"),
        (["data", "--source=sotu", "--out=x", "--config.steps=3"], "--config.steps=3"),
        (["report", "--workdir=x", "here"], "here"),
    ],
)
def test_unknown_options_are_refused_in_one_sentence(words, unknown):
    name = words[0]
    advice = f"{unknown} is not an option of {name}: see sparsecod {name} --help"
    assert _refused(*words, code=2) == f"sparsecod {name}: {advice}"


@pytest.mark.parametrize(
    ("words", "name", "value"),
    [
        (["analyze", "--tokens=a.npy"], "token_file", "a.npy"),
        (["analyze", "--data=a"], "data_dir", "a"),
        (["eval", "--tasks=x", "--data=a"], "task_data", "a"),
        (["generate", "--prompt=x", "--tokens=3"], "max_new_tokens", 3),
        (["generate", "--prompt=x"], "max_new_tokens", 64),
    ],
)
def test_former_names_of_options_are_understood(words, name, value):
    assert getattr(arguments.parser().parse_args(words), name) == value


@pytest.mark.parametrize("place", [0, 1, 2])
def test_overrides_stand_before_or_after_the_config(tmp_path, capsys, place):
    words = [f"--config={process.ROOT}/configs/smoke.py", f"--workdir={tmp_path}/run"]
    words.insert(place, "--config.steps=0")
    with pytest.raises(SystemExit) as ended:
        main(["train", *words])
    assert ended.value.code == 78
    assert capsys.readouterr().err == "sparsecod train: steps is 0: set it above 0\n"


def test_what_is_missing_is_refused_in_one_sentence(tmp_path):
    workdir = f"--workdir={tmp_path}/run"
    sentence = _refused("train", "--config=configs/nowhere.py", workdir)
    assert sentence.startswith(
        "sparsecod train: there is no config file configs/nowhere.py: give a name or path"
    )
    sentence = _refused(
        "train",
        "--config=configs/smoke.py",
        workdir,
        f"--config.data.path={tmp_path}/none",
    )
    options = "--source=sotu --tokenizer=bpe --vocab_size=2048"
    command = f"sparsecod data {options} --out={tmp_path}/none"
    assert (
        sentence
        == f"sparsecod train: there is no data in {tmp_path}/none: run `{command}`"
    )
    assert "nowhere holds no run: " in _refused(
        "report", f"--workdir={tmp_path}/nowhere"
    )
    assert "nowhere" in _refused(
        "data", f"--source={tmp_path}/nowhere", f"--out={tmp_path}/out"
    )
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--config=configs/smoke.py"],
        ["plan", "--config=configs/smoke.py", "--topology=h100:1"],
    ],
    ids=" ".join,
)
def test_a_share_of_gpu_memory_that_is_no_number_is_refused(
    words, tmp_path, monkeypatch
):
    monkeypatch.setitem(ENVIRONMENT, "XLA_CLIENT_MEM_FRACTION", "0,4")
    where = "--workdir" if words[0] == "train" else "--out"
    sentence = _refused(*words, f"{where}={tmp_path}/new")
    assert (
        sentence
        == f"sparsecod {words[0]}: XLA_CLIENT_MEM_FRACTION=0,4 is not a number: "
        "write it like 0.9, or unset it"
    )
    assert not list(tmp_path.iterdir())


def test_wrong_inputs_are_one_sentence_and_leave_everything_as_it_was(tmp_path):
    """A part of tests/faults/test_wrong_inputs.py that needs no model."""
    root = tmp_path / "world"
    wrong_inputs.build_files(root)
    before, failures = wrong_inputs.snapshot(root), {}
    lines = [
        line
        for line in wrong_inputs.command_lines(root, tmp_path / "tokens")
        if line[0] in ("train", "sweep", "report", "data")
    ]
    for words in lines[::5]:
        if found := wrong_inputs.complaint(words):
            failures[" ".join(words)[-200:]] = found
    assert not failures, wrong_inputs.report(failures)
    assert wrong_inputs.snapshot(root) == before
    assert len(lines[::5]) > 30


def test_from_text_to_report(corpus, tmp_path):
    data, run = tmp_path / "data", tmp_path / "runs" / "first"
    output, _ = _sparsecod(
        "data",
        f"--source={corpus}",
        f"--out={data}",
        "--vocab_size=300",
        "--validation_fraction=0.2",
    )
    assert re.search(
        r"train \d+ documents, [\d,]+ tokens; validation \d+ documents, .*; "
        r"fingerprint [0-9a-f]{16}\n$",
        output,
    )
    experiment = tiny_configs.experiment(
        steps=2,
        data={"path": str(data)},
        schedule={"warmup_steps": 1},
        evaluation={"max_tokens": 512},
    )
    output, _ = _sparsecod(
        "train",
        "--config=configs/smoke.py",
        f"--workdir={run}",
        *tiny_configs.flags(experiment),
    )
    assert "step 2/2 | loss " in output
    assert [
        json.loads(line)["step"]
        for line in (run / "metrics.jsonl").read_text().splitlines()
    ] == [1, 2]
    final = json.loads((run / "final.json").read_text())
    assert final["tokens"] == 2 * 8 * 32
    output, _ = _sparsecod("report", f"--workdir={tmp_path}/runs")
    assert output == f"report: {tmp_path}/runs/report.html\n"
    page = (tmp_path / "runs" / "report.html").read_text()
    assert "1 of 1 runs finished." in page
    assert f"<td>{final['loss']:.4f}</td>" in page


def _loaded_by(*words):
    """The modules that a process has loaded once it has run a subcommand."""
    script = (
        "import sys; from sparsecod_jax.cli import main; "
        f"main({words!r}); print(*sys.modules, sep='\\n')"
    )
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=process.ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=True,
    )
    return set(done.stdout.splitlines())


def test_data_does_not_wait_for_jax(corpus, tmp_path):
    places = (f"--source={corpus}", f"--out={tmp_path}/data")
    loaded = _loaded_by(
        "data", *places, "--tokenizer=bytes", "--validation_fraction=0.2"
    )
    assert "sparsecod_jax.data.prepare" in loaded
    assert not {"jax", "jaxlib", "flax", "orbax"} & loaded


def test_a_report_does_not_wait_for_jax(tmp_path):
    study_dirs.write(tmp_path / "study")
    loaded = _loaded_by("report", f"--workdir={tmp_path}/study")
    assert (tmp_path / "study" / "report.md").exists()
    assert "sparsecod_jax.report.writing" in loaded
    assert not {"jax", "jaxlib", "flax", "orbax"} & loaded
