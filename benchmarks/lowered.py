"""Do two checkouts give the compiler the same train step? StableHLO: texts of lowered programs.

Each checkout lowers the step in a process of its own, so neither can import from the other. Names
of functions and places in the source are no part of a program; the texts are compared without them.

Command:  python benchmarks/lowered.py OLD_CHECKOUT NEW_CHECKOUT [FOLDER]
Prints one line per program, with a hash of either text, and exits with 1 where any two differ.
The texts are written to FOLDER, if one is given.
"""

import difflib
import hashlib
import itertools
import json
import os
import re
import subprocess
import sys
from pathlib import Path

CONFIGS = ("smoke", "dense_1b", "moe_400m_2b")
DEVICES = (1, 8)  # a single device, and a mesh over which the step is sharded
DIFFERING_LINES = 20  # shown of each difference

# What a checkout runs. The names of modules are those of any version that has a train step.
LOWER = """
import importlib, json, os, sys
import jax
import sparsecod_jax

def first_of(*names):
    for name in names:
        module, _, attribute = name.partition(":")
        try:
            return getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError):
            pass
    raise SystemExit(f"none of {names} is in this checkout")

load_experiment = first_of(
    "sparsecod_jax.config.load:load_experiment",
    "sparsecod_jax.config_file:load",
)
build = first_of(
    "sparsecod_jax.train.step:build_on",
    "sparsecod_jax.train.step:build",
)
if not sparsecod_jax.__file__.startswith(os.getcwd() + os.sep):
    raise SystemExit(f"{sparsecod_jax.__file__} is not of this checkout")
texts = {}
for name in sys.argv[1:]:
    program = build(load_experiment(f"configs/{name}.py:nano"), jax.devices())
    for with_moments in (False, True):
        lowered = program.lower(with_moments=with_moments)
        suffix = " with moments" if with_moments else ""
        texts[f"{name}:nano on {len(jax.devices())}{suffix}"] = lowered.as_text()
print(json.dumps(texts))
"""


def lowered_texts(checkout: Path, devices: int) -> dict[str, str]:
    """The train steps of a checkout for so many CPU devices: a StableHLO text for each name."""
    environment = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": os.fspath(checkout),
        "XLA_FLAGS": f"--xla_force_host_platform_device_count={devices}",
    }
    command = [sys.executable, "-P", "-c", LOWER, *CONFIGS]
    process = subprocess.run(
        command, cwd=checkout, env=environment, stdout=subprocess.PIPE, check=True
    )
    texts = json.loads(process.stdout)
    return {name: normalized(text) for name, text in texts.items()}


def normalized(text: str) -> str:
    """The text with the module's name left out and functions numbered in order of appearance."""
    text = re.sub(r"module @\S+", "module", text, count=1)
    functions = re.findall(r'func\.func [\w ]*@("[^"]+"|[\w.$-]+)', text)
    numbers = {name: f"function_{number}" for number, name in enumerate(functions)}

    def renamed(match: re.Match[str]) -> str:
        name = match.group(1)
        return f"@{numbers.get(name, name)}"

    return re.sub(r'@("[^"]+"|[\w.$-]+)', renamed, text)


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def main(old: str, new: str, folder: str | None = None) -> int:
    """Compares the two checkouts; returns the exit code."""
    differing = 0
    for devices in DEVICES:
        before = lowered_texts(Path(old).resolve(), devices)
        after = lowered_texts(Path(new).resolve(), devices)
        for name in before:
            differing += _compare(name, before[name], after[name])
        if folder is not None:
            _write(Path(folder), {"old": before, "new": after})
    return 1 if differing else 0


def _compare(name: str, before: str, after: str) -> bool:
    """Prints whether the texts of one program are equal, and where not; returns if they differ."""
    same = before == after
    verdict = "equal" if same else "DIFFERENT"
    lines = f"{before.count(chr(10)):,} lines"
    print(f"{name}: {verdict}, {digest(before)} {digest(after)}, {lines}", flush=True)
    if not same:
        difference = difflib.unified_diff(
            before.splitlines(), after.splitlines(), "old", "new", n=0, lineterm=""
        )
        for line in itertools.islice(difference, DIFFERING_LINES):
            print(f"    {line[:200]}")
    return not same


def _write(folder: Path, sides: dict[str, dict[str, str]]) -> None:
    for side, texts in sides.items():
        (folder / side).mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            file = name.replace(":", "_").replace(" ", "_") + ".mlir"
            (folder / side / file).write_text(text)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
