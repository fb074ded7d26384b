"""How are the baselines of an earlier commit made? Baselines: runs, scores and exports by its code.

Command:  python -m tests.compatibility.make_baselines COMMIT...
Takes some minutes for each commit, whose code runs in a worktree of its own.

data/COMMIT/
  made_with.json   the commit, the compiler and a digest of the CPU
  tiny.py, study.py, corpus/, data/
  finished/        dense/ with its checkpoint, scores and model.safetensors in export/; moe/; study/
  stopped/         dense/ killed after step 6, with the checkpoint of step 4; moe/ preempted, with a
                   checkpoint of the step that it reached; study/ killed with one of two runs done

Checkpoints that no test restores are left out; their digests are in digests.json.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tests.compatibility import records

ROOT = Path(__file__).resolve().parents[2]
WORDS = (
    "a of in and it was not the river stone light under old paper walks green quiet "
    "seven bird wind her his"
)

# Plain values, so that the file is the same for all commits, whatever they name their modules.
CONFIG = '''"""The smallest runs that have all that a run has."""

import ml_collections


def get_config(scale="dense"):
    model = {
        "d_model": 16,
        "n_layers": 2,
        "n_heads": 4,
        "n_kv_heads": 2,
        "d_ff": 32,
        "vocab_size": 280,
        "compute_dtype": "float32",
    }
    if scale == "moe":
        experts = {"n_experts": 4, "top_k": 2, "shared_expert": True, "d_shared": 8}
        model.update(d_ff=8, **experts)
    return ml_collections.ConfigDict(
        {
            "seed": 0,
            "steps": 8,
            "global_batch": 8,
            "model": model,
            "data": {"path": "data", "source": "corpus", "seq_len": 32, "seed": 0},
            "optimizer": {"peak_lr": 3e-3},
            "schedule": {"warmup_steps": 2},
            "execution": {"remat": "none"},
            "evaluation": {
                "every": 2,
                "seq_len": 32,
                "batch_size": 8,
                "max_tokens": 1024,
            },
            "checkpoint": {"every": 4, "keep": 1},
            "log": {"every": 2, "moments_every": 4},
        }
    )
'''

STUDY = '''"""Two runs, the first of which is done and the second begun."""

try:
    from sparsecod_jax.study.study import Claim, Study
except ImportError:
    from sparsecod_jax.sweep.study import Claim, Study


def get_study(scale="nano"):
    return Study(
        question="Does a third block pay?",
        held_fixed=("width", "tokens"),
        config="tiny.py:dense",
        arms={"flat": {"model.n_layers": 2}, "deep": {"model.n_layers": 3}},
        claims=(
            Claim("depth lowers the loss", "final/bits_per_byte", "flat", "deep", 0.01),
        ),
        not_testable=("accuracy",),
        changes={"model.d_model": 8},
        seeds=(0,),
        analyze={"scores": "usefulness", "sequences": 2, "seq_len": 24},
    )
'''

# Python imports this before anything else. It makes records that name no machine, and ends the
# process that $STOP describes as it prints the words that $STOP gives.
SITECUSTOMIZE = """
import builtins, json, os, signal, sys, time

system, _, _, _, architecture = os.uname()
named = type(os.uname())((system, "host", "", "", architecture))
os.uname = lambda: named

stop = json.loads(os.environ.get("STOP", "null"))
if stop and f"--workdir={stop['workdir']}" in " ".join(sys.orig_argv):
    unchanged = builtins.print

    def print_and_stop(*words, **options):
        unchanged(*words, **options)
        if not str(words[0]).startswith(stop["words"]):
            return
        checkpoint = os.path.join(stop["workdir"], "checkpoints", "4")
        while stop["killed"] and not os.path.exists(checkpoint):
            time.sleep(0.01)
        if stop["sweep"]:
            os.kill(os.getppid(), signal.SIGKILL)
        number = signal.SIGKILL if stop["killed"] else signal.SIGTERM
        os.kill(os.getpid(), number)

    builtins.print = print_and_stop
"""


class Maker:
    """The code of one commit, at work in one folder."""

    def __init__(self, checkout: Path, folder: Path, scratch: Path):
        self.folder = folder
        (scratch / "site").mkdir()
        (scratch / "site" / "sitecustomize.py").write_text(SITECUSTOMIZE)
        self._environment = records.environment(checkout, scratch / "caches")
        self._environment["PYTHONPATH"] += f"{os.pathsep}{scratch / 'site'}"

    def run(self, *words: str, code: int = 0, stop: dict | None = None) -> None:
        """One subcommand; `stop` has the words after which it ends, and how."""
        command = [sys.executable, "-P", "-m", "sparsecod_jax", *words]
        environment = self._environment | {"STOP": json.dumps(stop)}
        process = subprocess.run(command, cwd=self.folder, env=environment, check=False)
        if process.returncode != code:
            raise SystemExit(
                f"{' '.join(words)} ended with {process.returncode}, not {code}"
            )


def make(commit: str) -> None:
    """Writes data/COMMIT anew."""
    with tempfile.TemporaryDirectory() as temporary:
        scratch = Path(temporary).resolve()
        checkout, folder = scratch / "checkout", scratch / commit
        git = ["git", "-C", os.fspath(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", checkout, commit], check=True)
        try:
            folder.mkdir()
            maker = Maker(checkout, folder, scratch)
            _make_data(maker)
            _make_finished(maker)
            _make_stopped(maker)
        finally:
            subprocess.run([*git, "remove", "--force", checkout], check=True)
        made_with = {"commit": commit, **records.machine()}
        (folder / "made_with.json").write_text(json.dumps(made_with, indent=1) + "\n")
        _prune(folder)
        shutil.rmtree(records.DATA / commit, ignore_errors=True)
        shutil.copytree(folder, records.DATA / commit)


def _make_data(maker: Maker) -> None:
    (maker.folder / "tiny.py").write_text(CONFIG)
    (maker.folder / "study.py").write_text(STUDY)
    corpus = maker.folder / "corpus"
    corpus.mkdir()
    rng, words = np.random.default_rng(0), WORDS.split()
    for number in range(24):
        frequencies = rng.dirichlet(np.ones(len(words)))
        chosen = rng.choice(words, size=rng.integers(100, 200), p=frequencies)
        (corpus / f"{number:02d}.txt").write_text(" ".join(chosen))
    maker.run(*records.PREPARE)


def _make_finished(maker: Maker) -> None:
    for model in records.MODELS:
        maker.run(*records.train(model, f"finished/{model}"))
    maker.run(*records.SCORE, "--workdir=finished/dense")
    maker.run("export", "--workdir=finished/dense", "--out=finished/export")


def _make_stopped(maker: Maker) -> None:
    def stop(workdir: str, words: str, *, killed: bool, sweep: bool = False) -> dict:
        folder = os.fspath(maker.folder / workdir) if sweep else workdir
        return {"workdir": folder, "words": words, "killed": killed, "sweep": sweep}

    killed = stop("stopped/dense", "step 6/8", killed=True)
    maker.run(*records.train("dense", "stopped/dense"), code=-9, stop=killed)
    preempted = stop("stopped/moe", "step 4/8", killed=False)
    maker.run(*records.train("moe", "stopped/moe"), code=75, stop=preempted)

    sweep = ("sweep", "--sweep=study.py:nano")
    study = "stopped/study"
    killed = stop(f"{study}/runs/deep-s0", "step 6/8", killed=True, sweep=True)
    maker.run(*sweep, f"--workdir={study}", code=-9, stop=killed)
    shutil.copytree(maker.folder / study, maker.folder / "finished/study")
    maker.run(*sweep, "--workdir=finished/study")


def _prune(folder: Path) -> None:
    """Leaves out what no test needs, and the folder's own path."""
    for run in [file.parent for file in folder.rglob("attempts")]:
        newest = max(int(step.name) for step in (run / "checkpoints").iterdir())
        digests = records.read_digests(run, newest)
        shutil.rmtree(run / "tensorboard", ignore_errors=True)
        if run.parts[-2:] == ("finished", "dense") or newest < records.STEPS:
            continue
        (run / "digests.json").write_text(json.dumps(digests, indent=1) + "\n")
        shutil.rmtree(run / "checkpoints")
    for half_written in folder.rglob(".sparsecod-*"):  # as the process was killed
        half_written.unlink()
    for study in ("finished", "stopped"):
        shutil.rmtree(folder / study / "study" / "logs")
    for file in folder.rglob("commit_success.txt"):
        file.write_text(file.read_text().replace(f"{folder}{os.sep}", ""))


if __name__ == "__main__":
    for each in sys.argv[1:]:
        make(each)
