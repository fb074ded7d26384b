"""Can this tokenizer.json be used without harm? Anyone may have made it.

The library reads it in Rust, which may panic, and its replacements and patterns may grow a text
without end or search for ever. So a file that has any is tried first, in a process of its own with
little memory and time, on all printable ASCII and on every piece of text that its rules look for.
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
GROWTH = 64  # ids a character at most
RISKY = (
    "Replace",
    "Split",
    "Precompiled",
)  # rules that take patterns or tables from the file
FAILED = 3

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
      ConfigError: it is missing, not a plain file, too large, or no text.
    """
    if not path.exists():
        raise ConfigError(
            f"there is no tokenizer {shown(path)}: use bytes, bpe, or the path of a tokenizer.json"
        )
    files.check_plain(path)
    size = path.stat().length
    if size > LARGEST:
        raise ConfigError(
            f"{shown(path)} has {size:,} bytes, and a tokenizer.json at most {LARGEST:,}: choose another"
        )
    try:
        return path.read_bytes().decode()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{shown(path)} can't be read as a tokenizer.json ({shown(error)}): choose another"
        ) from error


def check(path: epath.Path, text: str) -> None:
    """Tries a file that has risky rules.

    Raises:
      ConfigError: it takes too long, too much memory, or makes too many ids of a text.
    """
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(
            f"{shown(path)} is not a tokenizer.json ({shown(error)}): choose another"
        ) from error
    parts = ("normalizer", "pre_tokenizer", "decoder")
    rules = [values.get(part) for part in parts] if isinstance(values, dict) else []
    found = list(_strings(rules))
    if not any(word in RISKY for word in found):
        return
    ascii_text = "".join(map(chr, range(32, 127)))
    texts = [ascii_text * 10, *({word[:1000] * 20 for word in found} - {""})]
    sentence = f"{shown(path)} {{}}: choose another tokenizer"
    try:
        tried = subprocess.run(
            [
                sys.executable,
                "-P",
                "-c",
                PROGRAM.format(growth=GROWTH, failed=FAILED, memory=MEMORY),
            ],
            input=json.dumps([text, texts]).encode(),
            capture_output=True,
            timeout=SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ConfigError(
            sentence.format(f"takes more than {SECONDS} s for a few lines of text")
        ) from error
    if tried.returncode == FAILED:
        raise ConfigError(
            sentence.format(f"makes more than {GROWTH} ids of a character")
        )
    if tried.returncode:
        reason = next(
            reversed(tried.stderr.decode(errors="replace").strip().splitlines()),
            f"code {tried.returncode}",
        )
        raise ConfigError(
            sentence.format(f"fails on a few lines of text ({shown(reason, 200)})")
        )


def _strings(value: Any) -> Iterator[str]:
    """Every text in nested JSON."""
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
    """A panic of the library, which is no Exception, as one sentence.

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
