"""Was this data made by the same request, from the same source?

Provenance: the request is in the manifest. What else the data depends on, the files of the
source and the tokenizer, is recorded beside it as far as it can be known.
"""

import contextlib
import dataclasses
import fnmatch
import hashlib
from typing import Any

from etils import epath

from sparsecod_jax.data import raw, sources, trial, workspace
from sparsecod_jax.data.request import Request
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files, records

# Size and time of change of each file when it was read, and a digest of the tokenizer.
SOURCE = "source.json"

Listing = dict[str, list[int]]  # as of `sources.listing`


def check_same(
    directory: epath.Path, recorded: dict[str, Any], request: Request
) -> None:
    """Refuses data of a different request.

    Args:
      recorded: the request by which the data was made or begun.

    Raises:
      ConfigError: an option differs.
    """
    # For options that earlier versions did not have.
    defaults = dataclasses.asdict(Request(request.source, "bytes"))
    changed = []
    for name, value in dataclasses.asdict(request).items():
        before = recorded.get(name, defaults[name])
        if before != value:
            changed.append(f"{name} was {before!r}, is {value!r}")
    if changed:
        raise ConfigError(
            f"{shown(directory)} holds data of another request"
            f" ({shown('; '.join(changed))}): choose another --out"
        )


def check_can_resume(
    directory: epath.Path, recorded: dict[str, Any], request: Request
) -> None:
    """Refuses unfinished work that this request cannot use.

    Raises:
      ConfigError: it is of another request, or of a version with other fingerprints.
    """
    check_same(directory, recorded, request)
    fingerprints = (directory / workspace.WORK).glob("*.hashes.npy")
    if "dedup" not in recorded and any(fingerprints):
        raise ConfigError(
            f"{shown(directory)} was begun by an earlier version, whose unfinished work"
            " can't be used: choose another --out"
        )


def source_files(request: Request) -> Listing:
    """The source's files; of a folder of raw token files, these alone."""
    listed = sources.listing(request.source)
    token_files = {
        name: stats
        for name, stats in listed.items()
        if fnmatch.fnmatchcase(name, raw.PARTS)
    }
    return token_files or listed


def record(directory: epath.Path, request: Request, listed: Listing) -> None:
    """Writes what the data is made from."""
    values = {"files": listed, "tokenizer": _tokenizer_digest(request)}
    records.write_record(directory / SOURCE, values)


def _tokenizer_digest(request: Request) -> str | None:
    """A digest of the file that --tokenizer names, if any."""
    if request.tokenizer in ("bpe", "bytes"):
        return None
    content = trial.content(files.absolute(request.tokenizer))
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def report_changes(directory: epath.Path, request: Request) -> None:
    """Prints how source and tokenizer differ from those of the finished data.

    It does so as far as they were recorded and still exist.
    """
    if not (directory / SOURCE).exists():
        return
    recorded = records.read_record(directory / SOURCE)
    advice = (
        f"the data in {shown(directory)} is not made again."
        " To make it from what is there now, choose another --out"
    )
    # What the data was made from may well be gone, which is no error.
    with contextlib.suppress(ConfigError):
        if recorded.get("tokenizer") not in (None, _tokenizer_digest(request)):
            tokenizer = shown(request.tokenizer)
            print(
                f"the tokenizer {tokenizer} is not the one that was used: {advice}",
                flush=True,
            )
    with contextlib.suppress(ConfigError):
        if difference := _difference(recorded["files"], source_files(request)):
            print(
                f"{shown(request.source)} has changed: {difference}; {advice}",
                flush=True,
            )


def _difference(before: Listing, now: Listing) -> str:
    """How many files are new, gone and changed, with their names; empty if none are."""
    common = before.keys() & now.keys()
    names_by_change = {
        "new": now.keys() - before.keys(),
        "gone": before.keys() - now.keys(),
        "changed": {name for name in common if before[name] != now[name]},
    }
    parts = []
    for change, names in names_by_change.items():
        if names:
            listed = shown(", ".join(sorted(names)), 200)
            parts.append(f"{len(names):,} {change} ({listed})")
    return ", ".join(parts)
