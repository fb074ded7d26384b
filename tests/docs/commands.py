"""What does a documented command do? It is run in this process, or parsed as its program would.

Everything happens in the current folder, which `enter_checkout` prepares.
"""

import argparse
import re
import runpy
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from sparsecod_jax import cli
from sparsecod_jax.config.load import load_experiment
from sparsecod_jax.plan import topologies
from sparsecod_jax.shell import arguments
from sparsecod_jax.study import study
from tests.docs.blocks import ROOT

SHORTER_RUN = {
    "steps": 2,
    "global_batch": 8,
    "schedule.warmup_steps": 1,
    "data.seq_len": 32,
    "evaluation.seq_len": 32,
    "evaluation.batch_size": 8,
    "evaluation.max_tokens": 256,
    "checkpoint.every": 2,
    "log.moments_every": 0,
}
SHORTER = {
    "data": ["--max_documents=30"],
    "train": [
        "--process_count=1",  # jax is at work in this process already
        *(f"--config.{name}={value}" for name, value in SHORTER_RUN.items()),
    ],
    # Half of the tokens, 128, are enough for the affine maps of width 64.
    "analyze": ["--sequences=8", "--seq_len=32"],
    "generate": ["--max_new_tokens=3"],
}
SHORTER_STUDY = """
import dataclasses
from sparsecod_jax.study import study

def get_study(scale="nano"):
    whole = study.load({spec!r})
    return dataclasses.replace(
        whole,
        changes=whole.changes | {changes!r},
        seeds=whole.seeds[:1],
        analyze={{"sequences": 8, "seq_len": 32, "scores": "profile"}},
    )
"""
FILES = ("cp", "mkdir")  # programs that are run for real
# What belongs to other projects, or changes only the shell: its words are all that is tested.
OTHERS = (
    "cd",
    "docker",
    "export",
    "gcloud",
    "git",
    "hf",
    "kubectl",
    "pre-commit",
    "source",
)


def enter_checkout(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes `folder` the current one, with what commands find in a checkout."""
    for name in ("configs", "launch"):
        (folder / name).symlink_to(ROOT / name)
    monkeypatch.chdir(folder)


def run(words: list[str], *, shorter: bool) -> None:
    """Runs a command; any exit code but 0 is an error."""
    words = _without_environment(words)
    program = words[0]
    if program == "sparsecod":
        _run_sparsecod(words[1:], shorter=shorter)
    elif program in FILES:
        subprocess.run(words, check=True)
    else:
        assert program == "source", f"{program} can't be run here: mark its block"


def _run_sparsecod(words: list[str], *, shorter: bool) -> None:
    if shorter:
        words = _shorter(words)
    cli.main(words)


def _shorter(words: list[str]) -> list[str]:
    """The words of a command that takes seconds."""
    subcommand = words[0]
    if subcommand == "analyze" and not any(w.startswith("--scores=") for w in words):
        words = [*words, "--scores=profile,usefulness"]
    if subcommand == "sweep" and "--dry_run" not in words:
        words = [_shorter_study(word) for word in words]
    return [*words, *SHORTER.get(subcommand, [])]


def _shorter_study(word: str) -> str:
    option, _, spec = word.partition("=")
    if option != "--sweep":
        return word
    file = Path("shorter_study.py")
    file.write_text(SHORTER_STUDY.format(spec=spec, changes=SHORTER_RUN))
    return f"--sweep={file}"


def parse(words: list[str]) -> None:
    """Checks the words of a command as its program would; a wrong option is an error."""
    words = _without_environment(words)
    program, *rest = words
    if program == "srun":
        parse(rest)
    elif program == "sparsecod":
        _parse_sparsecod(rest)
    elif program == "python":
        _parse_python(rest)
    elif program == "make":
        _parse_make(rest)
    elif program == "pip":
        _parse_pip(rest)
    else:
        assert program in (*OTHERS, *FILES), f"{program} is no program known here"


def _without_environment(words: list[str]) -> list[str]:
    """A command without the variables that are set before it."""
    while re.match(r"[A-Z_]+=", words[0]):
        words = words[1:]
    return words


def _parse_sparsecod(words: list[str]) -> None:
    args, overrides = arguments.parser().parse_known_args(words)
    for word in overrides:
        assert word.startswith("--config."), f"{word} is not an option"
    if hasattr(args, "config"):
        load_experiment(args.config, overrides)
    else:
        assert not overrides
    _check_values(args)


def _parse_python(words: list[str]) -> None:
    if words[:2] == ["-m", "sparsecod_jax"]:
        _parse_sparsecod(words[2:])
    elif words[:2] == ["-m", "pytest"]:
        paths = [word for word in words[2:] if word.startswith("tests/")]
        for path in paths:
            assert (ROOT / path.partition("::")[0]).exists(), path
    else:
        script = ROOT / words[0]
        assert script.exists(), f"there is no {script}"
        if script.parent.name == "launch":
            _parse_launcher(script, words[1:])


class _Parsed(Exception):
    """Ends a launcher when its options are known."""


def _parse_launcher(script: Path, words: list[str]) -> None:
    parse_args = argparse.ArgumentParser.parse_args

    def parse_and_stop(self, args=None, namespace=None):
        raise _Parsed(parse_args(self, args, namespace))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_args", parse_and_stop)
        patch.setattr(sys, "argv", [str(script), *words])
        with pytest.raises(_Parsed) as parsed:
            runpy.run_path(str(script), run_name="__main__")
    _check_values(parsed.value.args[0])


def _check_values(args: argparse.Namespace) -> None:
    """Values that can be checked before there is a pod."""
    if hasattr(args, "sweep"):
        study.expand(study.load(args.sweep))
    named = getattr(args, "topology", None) or []
    for topology in [named] if isinstance(named, str) else named:
        topologies.shape(topology)


def _parse_make(words: list[str]) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for word in words:
        if "=" not in word:
            target = rf"^{re.escape(word)}:"
            assert re.search(target, makefile, re.MULTILINE), f"make has no {word}"


def _parse_pip(words: list[str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    known = {*project["optional-dependencies"]}
    for word in words:
        extras = re.fullmatch(r"(?:\.|sparsecod-jax)\[([\w,]+)\]", word)
        if extras:
            assert {*extras[1].split(",")} <= known, f"{word} has an unknown extra"
