"""Command lines that can't work, by subcommand.

A world of things that are not what they should be, and the words that name them.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from launch import slurm
from sparsecod_jax.cli import main
from sparsecod_jax.launching import launching
from tests.support import saved_runs, tiny_configs

CODE = {  # of a config file or study that is none
    "syntax": "def get_config(:\n",
    "name": "def get_config():\n    return widht\n\n\nget_study = get_config\n",
    "import": "import nowhere_at_all\n",
    "runtime": "raise RuntimeError('no')\n",
    "exit": "raise SystemExit(3)\n",
    "nothing": "x = 3\n",
    "none": "def get_config(*_):\n    return None\n\n\nget_study = get_config\n",
    "list": "def get_config(*_):\n    return [1]\n\n\nget_study = get_config\n",
    "no function": "get_config = get_study = 3\n",
    "recursion": "def get_config(*_):\n    return get_config()\n\n\nget_study = get_config\n",
    "escape": "raise ValueError('\\x1b]0;owned\\x07' + 'x' * 10**6)\n",
    "null": "x = '\0'\n",
    "latin": b"x = '\xe9'\n",
    "empty": "",
    "assertion": "assert False\n",
    "unicode": "def get_config(*_):\n"
    "    raise UnicodeDecodeError('utf-8', b'x', 0, 1, 'no')\n\n\n"
    "get_study = get_config\n",
}
STUDY = """from sparsecod_jax.study.study import Claim, Study
def get_study(*_):
    fields = {{"question": "Why?", "held_fixed": (), "config": "configs/smoke.py:nano",
               "arms": {{"a": {{"model.n_layers": 2}}}}, "claims": (), "not_testable": ()}}
    return Study(**(fields | {change}))
"""
STUDIES = {
    "arms are a list": {"arms": [{"model.n_layers": 2}]},
    "an arm is a list": {"arms": {"a": ["model.n_layers"]}},
    "an arm is a number": {"arms": {"a": 3}},
    "an unknown field": {"arms": {"a": {"model.n_layerz": 2}}},
    "a wrong value": {"arms": {"a": {"model.n_layers": "many"}}},
    "a huge value": {"arms": {"a": {"model.n_layers": 10**40}}},
    "seeds beyond 32 bits": {"seeds": (2**40,)},
    "seeds are words": {"seeds": ("0",)},
    "no seed": {"seeds": ()},
    "another config": {"config": "nowhere.py"},
    "config is none": {"config": None},
    "an unknown argument": {"armz": {}},
    "claims are words": {"claims": ("deeper",)},
    "a name with spaces": {"arms": {"a b": {}}},
}
RECORDS = {  # in place of a JSON file
    "empty": b"",
    "list": b"[1]",
    "number": b"3",
    "null": b"null",
    "object": b"{}",
    "cut": b'{"seed": 1, "mod',
    "latin": b'{"seed": "\xe9"}',
    "deep": b"[" * 10**5,
    "huge": b'{"seed": ' + b"9" * 5000 + b"}",
    "unknown": b'{"seed": 0, "\\u001b]0;owned\\u0007": 1}',
    "types": b'{"seed": "0", "model": [], "data": 3}',
}
INTEGERS = ("", "x", "1.5", "1e3", "nan", "9" * 30, "-" + "9" * 30)
FLOATS = ("", "x", "nan", "inf", "-inf", "-1")


def build(root: Path) -> None:
    """The world."""
    build_files(root)
    run = Path(saved_runs.run(root / "run", tiny_configs.MODEL).path)
    for file in ("config.json", "manifest.json", "tokenizer.json"):
        for name, content in RECORDS.items():
            if file == "manifest.json" and name == "object":
                continue  # an old manifest may hold as little
            spoilt = Path(shutil.copytree(run, root / "runs" / f"{file} {name}"))
            (spoilt / file).write_bytes(content)
    without_checkpoints = shutil.ignore_patterns("checkpoints")
    shutil.copytree(run, root / "no checkpoint", ignore=without_checkpoints)


def build_files(root: Path) -> None:
    """The world without runs."""
    (root / "precious").mkdir(parents=True)
    (root / "precious" / "work").mkdir()
    (root / "precious" / "work" / "thesis.txt").write_text("years")
    (root / "file").write_text("precious")
    (root / "empty").touch()
    (root / "nothing").mkdir()
    (root / "dangling").symlink_to("nowhere")
    (root / "loop").symlink_to("loop")
    os.mkfifo(root / "pipe")
    (root / "bytes").write_bytes(bytes(range(256)))
    (root / "code").mkdir()
    for name, text in CODE.items():
        content = text if isinstance(text, bytes) else text.encode()
        (root / "code" / f"{name}.py").write_bytes(content)
    for name, change in STUDIES.items():
        file = root / "code" / f"study, {name}.py"
        file.write_text(STUDY.format(change=repr(change)))
    (root / "code" / "study.py").write_text(STUDY.format(change={}))
    for name, content in RECORDS.items():
        (root / f"data {name}").mkdir()
        (root / f"data {name}" / "manifest.json").write_bytes(content)
    np.save(root / "flat.npy", np.zeros(7, np.int32))
    np.save(root / "floats.npy", np.zeros((3, 8), np.float32))
    np.save(root / "negative.npy", np.full((3, 8), -1, np.int32))
    np.save(root / "large.npy", np.full((3, 8), 10**9, np.int64))


def command_lines(root: Path, tokens: Path) -> Iterator[list[str]]:
    """Each with one mistake; all other words are right."""
    for name, (words, wrong) in _subcommands(root, tokens).items():
        subcommand = name.split()
        yield subcommand
        yield [*subcommand, *words, "--nothing=3"]
        yield [*subcommand, *words, "stray"]
        yield [*subcommand, *words, "--\x1b[31m=3"]
        for option, values in wrong.items():
            others = [word for word in words if not word.startswith(f"--{option}=")]
            for value in values:
                yield [*subcommand, *others, f"--{option}={value}"]


def _subcommands(
    root: Path, tokens: Path
) -> dict[str, tuple[list[str], dict[str, Sequence[str]]]]:
    """By subcommand: words that would work, and by option values that can't."""
    names = ("nowhere", "file", "empty", "nothing", "dangling", "loop")
    names += ("pipe", "precious", "bytes")
    no_folder = ["", *(f"{root}/{name}" for name in names)]
    no_folder += [
        f"{root}/{'x' * 300}",
        "http://host/x",
        "s3://bucket/x",
        "gs://",
        f"{root}/\udcff",
        f"{root}/a\0b",
        f"{root}/file/x",
    ]
    names = ("file", "file/x", "pipe", "loop/x", "x" * 300)
    not_writable = ["", *(f"{root}/{name}" for name in names)]
    not_writable += [
        "/proc/nowhere/x",
        "http://host/x",
        "gs://",
        f"{root}/\udcff",
        f"{root}/a\0b",
        "~nobody-of-that-name/x",
    ]
    code = [f"{root}/code/{name}.py" for name in CODE]
    code += [f"{root}/code/absent.py", f"{root}/code", f"{root}/pipe"]
    code += ["", f"{root}/bytes"]
    studies = code + [f"{root}/code/study, {name}.py" for name in STUDIES]
    runs = [f"{root}/runs/config.json {name}" for name in RECORDS if name != "object"]
    smoke, new = "--config=configs/smoke.py", f"--workdir={root}/new"
    tiny_flags = tiny_configs.flags(tiny_configs.experiment(data={"path": str(tokens)}))
    overrides = {
        f"config.{name}": ["", "x", "nan", "[1", "{}", "-1", "9" * 40, "\x1b[31m"]
        for name in (
            "steps",
            "model.n_layers",
            "optimizer.peak_lr",
            "data.seq_len",
            "model",
            "seed",
            "optimizer.decayed",
            "mesh.data",
        )
    }
    overrides["config.optimizer.decayed"] = ["x", "nan", "[1", "-1", "9" * 40]
    overrides |= {
        "config.nothing": ["1"],
        "config.": ["1"],
        "config.model.": ["1"],
        "config.model.n_layers.x": ["1"],
        "config.steps[0]": ["1"],
    }
    model = {"workdir": [*no_folder, *runs, f"{root}/no checkpoint"], "hf": no_folder}
    run = f"--workdir={root}/run"
    return {
        "data": (
            ["--source=sotu", f"--out={root}/new", "--tokenizer=bytes"],
            {
                "source": [
                    "",
                    "hf:",
                    "s3://bucket/x",
                    f"{root}/nowhere",
                    f"{root}/nothing",
                    f"{root}/a\0b",
                    f"{root}/\udcff",
                ],
                "out": not_writable,
                "tokenizer": [
                    "",
                    f"{root}/nowhere",
                    f"{root}/empty",
                    f"{root}/bytes",
                    f"{root}/precious",
                    "gs://",
                ],
                "vocab_size": ["x", "", "9" * 30],
                "split_seed": ["x", "", "9" * 30],
                "validation_fraction": [*FLOATS, "0", "1", "2"],
            },
        ),
        "train": (
            [smoke, *tiny_flags, new, "--process_count=1"],
            {
                "config": code,
                "workdir": not_writable,
                **overrides,
                "config.data.path": [
                    *no_folder,
                    *(f"{root}/data {name}" for name in RECORDS),
                ],
            },
        ),
        "analyze": (
            [run, "--scores=profile", f"--out={root}/scores"],
            {
                **model,
                "scores": ["", "nothing", "profile,", "profile,\x1b[31m"],
                "tokens": [
                    f"{root}/{name}"
                    for name in (
                        "nowhere",
                        "file",
                        "empty",
                        "flat.npy",
                        "floats.npy",
                        "negative.npy",
                        "large.npy",
                    )
                ],
                "data": no_folder,
                "sequences": [*INTEGERS, "0", "1", "-1"],
                "seq_len": [*INTEGERS, "0", "1", "-1"],
                "split": ["", "test"],
                "seed": [*INTEGERS, "-1", "4294967296"],
                "jacobian": ["", "both"],
            },
        ),
        "export": (
            [run, f"--out={root}/new"],
            {
                "workdir": model["workdir"],
                "out": [f"{root}/file", f"{root}/file/x"],
                "dtype": ["", "float64", "x"],
            },
        ),
        "import": (
            [f"--hf={root}/nothing", new],
            {
                "hf": no_folder,
                "workdir": [f"{root}/precious", f"{root}/file", f"{root}/run"],
            },
        ),
        "eval": (
            [run, "--tasks=arc_easy", f"--out={root}/new.json"],
            {
                "workdir": no_folder,
                "hf": no_folder,
                "tasks": ["", ",", " , "],
                "limit": [*INTEGERS, "0", "-1"],
                "num_fewshot": [*INTEGERS, "-1"],
                "out": [
                    f"{root}/nowhere/x",
                    f"{root}/precious",
                    f"{root}/file",
                    f"{root}/pipe",
                    "",
                    "gs://",
                    f"{root}/x\0",
                    f"{root}/{'x' * 300}",
                ],
                "include": [f"{root}/precious"],
            },
        ),
        "generate": (
            [run, "--prompt=a"],
            {
                **model,
                "prompt": ["\udcff", "a" * 10**5],
                "tokens": [*INTEGERS, "0", "-1", "100000"],
                "temperature": FLOATS,
                "seed": [*INTEGERS, "-1", "4294967296"],
            },
        ),
        "plan": (
            [smoke, "--topology=v5e:2x2"],
            {
                "config": code,
                "topology": [
                    "",
                    "x",
                    "v5e",
                    "v5e:0x0",
                    "v5e:-1x1",
                    "h100:x",
                    "h100:1x9999999",
                    "v5p:1x1x1*0",
                ],
                "mfu": [*FLOATS, "0", "2"],
            },
        ),
        "sweep": (
            [f"--sweep={root}/code/study.py", new, "--dry_run"],
            {
                "sweep": studies,
                "jobs": [*INTEGERS, "0", "-1"],
                "max_hours": [*FLOATS, "0"],
            },
        ),
        "slurm plan": (
            [f"--sweep={root}/code/study.py", new],
            {
                "sweep": studies,
                "topology": ["x", "v5e:0x0"],
                "mfu": [*FLOATS, "0", "2"],
            },
        ),
        "slurm render": (
            [
                f"--sweep={root}/code/study.py",
                new,
                "--allow_dirty",
                f"--data_path={tokens}",
            ],
            {
                "sweep": studies,
                "workdir": [*not_writable, "gs://", f"{root}/100%", f"{root}/a\nb"],
                "data": no_folder,
                "nodes": [*INTEGERS, "0"],
                "at_once": [*INTEGERS, "-1"],
                "sbatch": ["x", "-p gpu", ""],
                "package": ["egg", ""],
            },
        ),
        "report": (
            [f"--workdir={root}/run"],
            {
                "workdir": [*no_folder, *runs],
                "out": ["", f"{root}/file", f"{root}/file/x", f"{root}/pipe", "gs://"],
            },
        ),
    }


def snapshot(root: Path) -> dict[str, str]:
    """What there is, by name."""
    found = {}
    for folder, folders, names in os.walk(root):
        for name in sorted([*folders, *names]):
            file = Path(folder, name)
            if file.is_file() and not file.is_symlink():
                content = hashlib.sha256(file.read_bytes()).hexdigest()
            else:
                content = str(os.lstat(file).st_mode)
            found[str(file)] = content
    return found


def complaint(words: list[str]) -> str | None:
    """What is wrong with how a command line that can't work ends; None where nothing is."""
    output, error, code = io.StringIO(), io.StringIO(), 0
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(error):
        try:
            if words[0] == "slurm":
                code = launching.main(slurm.Slurm(), words[1:])
            else:
                main(words)
        except SystemExit as ended:
            code = ended.code
        except BaseException as escaped:
            return f"{type(escaped).__name__} escaped: {escaped}"
    message = error.getvalue()
    if code not in (2, 78):
        return f"exit code {code}: {message[-300:]}"
    if "Traceback" in message or "this is a bug" in message:
        return message[-300:]
    is_printable_line = message.count("\n") == 1 and message.strip().isprintable()
    if code == 78 and not (is_printable_line and len(message) <= 2200):
        return f"not one sentence: {message[:300]!r}"
    return None


def report(failures: dict[str, str]) -> str:
    return json.dumps(failures, indent=1)
