"""How does a source become token shards?

Data preparation: documents are selected and split (`selection`, `splitting`), the
tokenizer is made or loaded, and each batch becomes a shard (`encoding`). Of a folder of
token files only the manifest is made (`raw`). A finished file is never made again, so an
interrupted command resumes where it stopped.
"""

import dataclasses
import functools
import itertools
from collections.abc import Callable

from etils import epath

from sparsecod_jax.data import (
    encoding,
    provenance,
    raw,
    round_trip,
    sources,
    splitting,
    tokenizer,
    workspace,
)
from sparsecod_jax.data.left_out import LeftOut
from sparsecod_jax.data.request import Request
from sparsecod_jax.data.selection import Selected, select
from sparsecod_jax.data.store import MANIFEST, Manifest, read_manifest
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage import files
from sparsecod_jax.storage.ownership import locked


def prepare(request: Request, out: str) -> Manifest:
    """Makes the data directory `out`, resumes an interrupted one, or finds it finished.

    Args:
      request: what to make.
      out: a local folder or one in an object store, which must be new, empty or ours.

    Raises:
      ConfigError: the source or tokenizer can't be used, or `out` holds something else,
        which was left as it is.
      Fenced: another process is making `out`.
    """
    directory = files.absolute(out)
    command = f"sparsecod data --source={request.source} --out={out}"
    if (directory / MANIFEST).exists():
        manifest = read_manifest(directory, command)
        provenance.check_same(directory, manifest.request, request)
        provenance.report_changes(directory, request)
    else:
        workspace.check_free(directory)
        _make(request, directory)
        manifest = read_manifest(directory, command)
    with locked(directory):
        workspace.clear(directory, manifest.request)
    return manifest


def _make(request: Request, directory: epath.Path) -> None:
    """Makes the data, from texts or from token files."""
    make = _from_text
    is_path = not request.source.startswith("hf:")
    if is_path and raw.is_token_folder(files.absolute(request.source)):
        make = raw.index
    # Listed before it is read, so that a file that changes meanwhile counts as changed.
    listed = provenance.source_files(request)

    def begin() -> epath.Path:
        check = functools.partial(
            provenance.check_can_resume, directory, request=request
        )
        work = workspace.begin(directory, dataclasses.asdict(request), check)
        provenance.record(directory, request, listed)
        return work

    make(request, directory, begin)


def _from_text(
    request: Request, directory: epath.Path, begin: Callable[[], epath.Path]
) -> None:
    """Makes shards and manifest; nothing is written before the source was opened.

    Args:
      begin: occupies the directory and returns the folder for unfinished work.
    """
    left_out = LeftOut()
    documents = sources.documents(
        request.source,
        text_field=request.text_field,
        split=request.split,
        separator=request.separator,
        left_out=left_out,
    )
    documents = itertools.islice(documents, request.max_documents)
    first = list(itertools.islice(documents, 2))
    if not first:
        raise ConfigError(
            f"{shown(request.source)} holds no document with text: choose another --source"
        )
    chosen = None
    if request.tokenizer not in ("bpe", "bytes"):
        chosen = tokenizer.load(files.absolute(request.tokenizer), request.eos_id)
    work = begin()
    with locked(directory):
        if len(first) == 1:
            parts, split_of = splitting.head_and_tail(first[0], request)
            no_dedup = dataclasses.replace(request, dedup="off")
            selected = select(no_dedup, parts, split_of, work)
        else:
            every = itertools.chain(first, documents)
            selected = select(request, every, splitting.by_hash(request), work)
        manifest = _encode(request, chosen, selected, left_out, directory)
        for line in left_out.lines():
            print(line, flush=True)
        # Written last: with its manifest the data is finished.
        files.write(directory / MANIFEST, manifest.to_json().encode())


def _encode(
    request: Request,
    chosen: tokenizer.Tokenizer | None,
    selected: Selected,
    left_out: LeftOut,
    directory: epath.Path,
) -> Manifest:
    """Makes the shards; `chosen` is the tokenizer that --tokenizer names a file of."""
    batches = selected.batches
    used = chosen or encoding.make_tokenizer(request, directory, batches)
    used.save(directory)
    measured = round_trip.measure(used, encoding.sample(directory, batches))
    if remark := round_trip.judge(measured, request.tokenizer):
        print(remark, flush=True)
    encoder = encoding.Encoder(directory, batches, used, left_out)
    return Manifest(
        request=dataclasses.asdict(request),
        tokenizer="bytes" if request.tokenizer == "bytes" else "tokenizer.json",
        vocab_size=used.vocab_size,
        eos_id=used.eos_id,
        dtype=encoder.dtype,
        train=encoder.make("train", request.max_tokens),
        validation=encoder.make("validation"),
        dropped_documents=selected.dropped,
        before=used.before,
        tokenizer_digest=files.digest(directory / tokenizer.TOKENIZER),
        near_duplicates=selected.examples,
        duplicates_forgotten=selected.forgotten,
        left_out=left_out.record(),
        round_trip=dataclasses.asdict(measured),
    )
