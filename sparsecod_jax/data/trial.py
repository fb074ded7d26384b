"""Can this tokenizer.json be used without harm? Anyone may have made it.

Trial of a tokenizer: the library reads the file in Rust, which may panic, and its
replacements and patterns may expand a text without end or search forever. So a file that
has any of these is tried first, in a process of its own with little memory and time, on
all printable ASCII and on every string that its rules contain.
"""

import contextlib
import json
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

from etils import epath

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files

LARGEST = 2**28  # bytes of a tokenizer.json; the largest in use have 2**25
SECONDS = 30
MEMORY = 2**32  # bytes of address space of the trial
GROWTH = 64  # ids per byte of text at most
# Rules that take patterns or tables from the file.
RISKY = ("Replace", "Split", "Precompiled")
FAILED = 3  # exit code

PROGRAM = """
import contextlib, json, resource, sys
with contextlib.suppress(ValueError, OSError):  # a lower limit is there already
    resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
from tokenizers import Tokenizer
content, texts = json.load(sys.stdin)
tokenizer = Tokenizer.from_str(content)
for text in texts:
    ids = tokenizer.encode(text, add_special_tokens=False).ids
    tokenizer.decode(ids[:1000])
    if len(ids) > {growth} * (len(text.encode()) + 1):
        sys.exit({failed})
"""


def content(path: epath.Path) -> str:
    """The text of a tokenizer.json.

    Raises:
      ConfigError: it is missing, not a plain file, too large, or not text.
    """
    if not path.exists():
        raise ConfigError(
            f"there is no tokenizer {shown(path)}:"
            " use bytes, bpe, or the path of a tokenizer.json"
        )
    files.check_plain(path)
    size = path.stat().length
    if size > LARGEST:
        raise ConfigError(
            f"{shown(path)} has {size:,} bytes,"
            f" and a tokenizer.json at most {LARGEST:,}: choose another"
        )
    try:
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{shown(path)} can't be read as a tokenizer.json ({shown(error)}):"
            " choose another"
        ) from error


def check(path: epath.Path, text: str) -> None:
    """Tries a file that has risky rules.

    Args:
      path: of the file, for messages.
      text: its content.

    Raises:
      ConfigError: it takes too long or too much memory, or makes too many ids of a text.
    """
    strings = set(_strings(_rules(path, text)))
    if strings.isdisjoint(RISKY):
        return
    # Repeated, as a bad rule may take time or memory that grows with the square.
    printable = "".join(map(chr, range(32, 127)))
    repeated = {string[:1000] * 20 for string in strings}
    texts = [printable * 10, *(repeated - {""})]
    if problem := _try(text, texts):
        raise ConfigError(f"{shown(path)} {problem}: choose another tokenizer")


def _rules(path: epath.Path, text: str) -> list[Any]:
    """What a tokenizer.json does to a text before and after its model."""
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{shown(path)} is not a tokenizer.json ({shown(error)}): choose another"
        ) from error
    if not isinstance(values, dict):
        return []
    return [values.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")]


def _try(tokenizer_json: str, texts: list[str]) -> str | None:
    """Encodes texts in a process of its own; returns what went wrong, if anything."""
    # With -P the library is not imported from the working directory.
    program = PROGRAM.format(growth=GROWTH, failed=FAILED, memory=MEMORY)
    try:
        process = subprocess.run(
            [sys.executable, "-P", "-c", program],
            input=json.dumps([tokenizer_json, texts]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        return f"takes more than {SECONDS} s for a few lines of text"
    if process.returncode == FAILED:
        return f"makes more than {GROWTH} ids per byte of text"
    if process.returncode == 0:
        return None
    lines = process.stderr.decode(errors="replace").strip().splitlines()
    reason = lines[-1] if lines else f"code {process.returncode}"
    return f"fails on a few lines of text ({shown(reason, 200)})"


def _strings(value: Any) -> Iterator[str]:
    """Every string in nested JSON."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _strings(item)
    elif isinstance(value, list):
        for item in value:
            yield from _strings(item)


@contextlib.contextmanager
def panics_named(path: object) -> Iterator[None]:
    """Turns a panic of the library, which is not an Exception, into a ConfigError.

    Raises:
      ConfigError: the library panicked.
    """
    try:
        yield
    except BaseException as error:
        if type(error).__name__ != "PanicException":
            raise
        raise ConfigError(
            f"the tokenizer {shown(path)} fails ({shown(error, 200)}): choose another"
        ) from error
