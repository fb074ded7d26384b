"""Jobs for launchers in tests, and programs that only write down how they were called."""

import argparse
import json
import os
import sys
from pathlib import Path

from sparsecod_jax.launching.launching import Job
from sparsecod_jax.launching.package import CodePackage

PROGRAM = ("python", "-P", "-m", "sparsecod_jax")
WORKDIR = "--workdir=gs://bucket/study/runs/deep-s0"
TRAIN = (*PROGRAM, "train", "--config=configs/dense_1b.py:paper", WORKDIR)
ANALYZE = (*PROGRAM, "analyze", WORKDIR)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "ab" * 32
IMAGE = f"region-docker.pkg.dev/project/sparsecod@sha256:{SHA256}"
IN_IMAGE = CodePackage(
    image=IMAGE, wheel=None, sha256=None, commit=COMMIT, dirty=False, data=None
)
WHEEL = (
    f"gs://bucket/study/package/{SHA256[:16]}"
    f"/sparsecod_jax-0.1.0+g{COMMIT}-py3-none-any.whl"
)
AS_WHEEL = CodePackage(
    image=None, wheel=WHEEL, sha256=SHA256, commit=COMMIT, dirty=False, data=None
)

# Each of them has ended a launcher that built strings.
HOSTILE = (
    "two words",
    'it\'s "quoted"',
    "a;touch PWNED",
    "line\nimage: evil",
    "$(touch PWNED)",
    "$(SPARSECOD_HOST)",
    "$$(HOME)$",
    "`id`",
    "back\\slash\\n",
    "--privileged",
    "",
    "naïve ☃",
)


def job(
    topology: str,
    commands: tuple[tuple[str, ...], ...] = (TRAIN,),
    name: str = "deep-s0",
) -> Job:
    return Job(name, 0, f"gs://bucket/study/runs/{name}", commands, topology)


def options(engine, *words: str) -> argparse.Namespace:
    """Options of an engine for a study in a bucket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--workdir", default="gs://bucket/study")
    engine.add_arguments(parser)
    return parser.parse_args(words)


def submit(engine, folder: Path, jobs: list[Job], *words: str) -> None:
    """Renders jobs of an image into a folder, and submits them."""
    args = options(engine, *words)
    paths = {}
    for name, content in engine.render(jobs, IN_IMAGE, args).items():
        paths[name] = folder / name
        paths[name].write_bytes(content)
    engine.submit(paths, jobs, args)


class Recorder:
    """Programs in a folder of PATH.

    Each appends its words to a file of its own, and answers what is written for it.
    """

    def __init__(self, folder: Path, monkeypatch):
        self._folder = folder
        monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")

    def add(self, name: str, body: str = "") -> None:
        """Makes the program; `body` is Python that follows, with its words as `words`."""
        lines = [
            "#!" + sys.executable,
            "import json, sys, os",
            f"folder = {str(self._folder)!r}",
            "words = sys.argv[1:]",
            f"with open(folder + '/{name}.calls', 'a') as file:",
            "    print(json.dumps(words), file=file)",
            body,
        ]
        program = self._folder / name
        program.write_text("\n".join(lines))
        program.chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """Words of each call so far."""
        file = self._folder / f"{name}.calls"
        if not file.exists():
            return []
        return [json.loads(line) for line in file.read_text().splitlines()]

    def put(self, name: str, value) -> None:
        """Leaves JSON for programs to read, as folder/NAME."""
        (self._folder / name).write_text(json.dumps(value))

    def get(self, name: str):
        return json.loads((self._folder / name).read_text())
