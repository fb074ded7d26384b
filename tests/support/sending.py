"""What a launcher is given in tests, and programs that only write down how they were called."""

import argparse
import json
import os
import sys
from pathlib import Path

from sparsecod_jax.launching.launching import Job
from sparsecod_jax.launching.package import CodePackage

TRAIN = (
    "python",
    "-P",
    "-m",
    "sparsecod_jax",
    "train",
    "--config=configs/dense_1b.py:paper",
    "--workdir=gs://bucket/study/runs/deep-s0",
)
ANALYZE = (
    "python",
    "-P",
    "-m",
    "sparsecod_jax",
    "analyze",
    "--workdir=gs://bucket/study/runs/deep-s0",
)
COMMIT = "0123456789abcdef0123456789abcdef01234567"
SHA256 = "ab" * 32
IN_IMAGE = CodePackage(
    "region-docker.pkg.dev/project/sparsecod@sha256:" + SHA256,
    None,
    None,
    COMMIT,
    False,
    None,
)
WHEEL = f"gs://bucket/study/package/{SHA256[:16]}/sparsecod_jax-0.1.0+g{COMMIT}-py3-none-any.whl"
AS_WHEEL = CodePackage(None, WHEEL, SHA256, COMMIT, False, None)

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
    """Programs in a folder of PATH: each appends its words to a file of its own, and answers what is written for it."""

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
        ]
        lines += [
            f"with open(folder + '/{name}.calls', 'a') as file: file.write(json.dumps(words) + chr(10))",
            body,
        ]
        (self._folder / name).write_text("\n".join(lines))
        (self._folder / name).chmod(0o755)

    def calls(self, name: str) -> list[list[str]]:
        """Words of each call so far."""
        file = self._folder / f"{name}.calls"
        return (
            [json.loads(line) for line in file.read_text().splitlines()]
            if file.exists()
            else []
        )

    def put(self, name: str, value) -> None:
        """Leaves JSON for programs to read, as folder/NAME."""
        (self._folder / name).write_text(json.dumps(value))

    def get(self, name: str):
        return json.loads((self._folder / name).read_text())
