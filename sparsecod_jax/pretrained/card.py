"""What is written about a model beside its weights? The README.md of an exported folder.

Model card: what the model is, how it was trained, how well it predicts, and what each block
contributes, as far as that is known.
"""

import json
import textwrap
from typing import Any

from sparsecod_jax.analysis.catalogue import IN_REPORTS
from sparsecod_jax.config import counts
from sparsecod_jax.pretrained.load import LoadedModel
from sparsecod_jax.storage.records import read_record
from sparsecod_jax.storage.rundir import RunDir

HEAD = """---
library_name: transformers
pipeline_tag: text-generation
tags:
- sparsecod_jax
- curse-of-depth
---
"""

# Of the table of blocks.
COLUMNS = [column for score in IN_REPORTS for column in score.card]
MEASURES = ("loss", "perplexity", "bits_per_byte", "unigram_entropy")  # of final.json
FILE_FIELDS = ("path", "source", "tokenizer")  # of records, whose values name files
# Fields of records that describe a machine and stay there.
PRIVATE = ("host", "hostname", "pid", "workdir", "coordinator")
WIDTH = 125  # of a line of text


def write(run: RunDir, model: LoadedModel) -> str:
    """The card in Markdown.

    A section about which nothing is known is left out.

    Args:
      run: with manifest and config, and scores and final measures if there are any.
      model: that was exported.
    """
    sections = [
        _description(run.path.name, model),
        _results(run, model.step),
        _blocks(run, model.weights),
        _training(run),
    ]
    return HEAD + "\n" + "\n\n".join(section for section in sections if section) + "\n"


def _description(name: str, model: LoadedModel) -> str:
    """The first section: sizes, and what a user of the model has to know."""
    cfg, parameters = model.source.model, counts.parameters(model.source.model)
    kind = "dense"
    if cfg.n_experts:
        kind = f"{cfg.n_experts} experts, {cfg.top_k} per token"
    sentences = [
        f"A Pre-LN language model of {cfg.n_layers} blocks of width {cfg.d_model} ({kind}),"
        f" {parameters.total:,} parameters, of which {parameters.activated:,} are active per"
        f" token; checkpoint {model.step} of its training.",
        f"Sequences of up to {model.source.max_seq_len:,} tokens;"
        f" every document ended with the end-of-text token, and {_beginning(model)}.",
    ]
    lines = [f"# {name}", "", " ".join(sentences)]
    if cfg.document_masking:
        lines.append(
            "It was trained with attention within documents, which stock code does not"
            " know: give it one document at a time."
        )
    if cfg.layer_norm_scaling:
        lines.append(
            "It was trained with LayerNorm Scaling, whose factors are folded into the gains."
        )
    return "\n".join(lines)


def _beginning(model: LoadedModel) -> str:
    """With which tokens a document began in training, as a clause."""
    tokenizer = model.source.tokenizer()
    name_of = tokenizer.inner.id_to_token
    tokens = [name_of(number) for number in tokenizer.before]
    if not tokens:
        return "none began with a token of its own"
    listed = " ".join(f"`{token}`" for token in tokens)
    return f"began with {listed}, which the tokenizer puts there"


def _results(run: RunDir, step: int) -> str:
    """The held-out measures, if the run ended with the exported checkpoint.

    Args:
      step: of the exported checkpoint.
    """
    if not run.final.exists():
        return ""
    final = read_record(run.final)
    if final.get("steps") != step:
        return ""
    rows = [
        [name.replace("_", " "), _number(final[name], ".4f")]
        for name in MEASURES
        if name in final
    ]
    return _table("## Held-out text", ["measure", "value"], rows)


def _blocks(run: RunDir, weights: str) -> str:
    """The scores of the exported weights, one row per block.

    Args:
      weights: a digest of the parameters.
    """
    if not run.analysis.scores.exists():
        return ""
    scores = read_record(run.analysis.scores)
    # Scores of an earlier checkpoint would be those of another model.
    if scores.get("model", {}).get("weights") != weights:
        return ""
    # A column without values belongs to a score that was not computed.
    columns = {}
    for column in COLUMNS:
        values = _value_at(scores, column.path)
        if values:
            columns[column.name] = values
    if not columns:
        return ""
    rows = []
    for block, values in enumerate(zip(*columns.values(), strict=True)):
        cells = [_number(value, ".4g") for value in values]
        rows.append([str(block + 1), *cells])
    data = scores["data"]
    measured = (
        f"Measured on {data['sequences']} sequences of {data['seq_len']} tokens,"
        " or the first of them."
    )
    readings = " ".join(column.reading for column in COLUMNS if column.reading)
    text = f"{textwrap.fill(readings, WIDTH)} {measured}"
    heading = f"## What each block contributes\n\n{text}"
    return _table(heading, ["block", *columns], rows)


def _training(run: RunDir) -> str:
    """Manifest and config of the run, as far as they may be published."""
    manifest = _as_json_block(_public(read_record(run.manifest)))
    config = _as_json_block(_public(read_record(run.config)))
    return f"## Training\n\nManifest:\n\n{manifest}\n\nConfig:\n\n{config}"


def _as_json_block(values: Any) -> str:
    """A code block of Markdown."""
    return f"```json\n{json.dumps(values, indent=1)}\n```"


def _public(value: Any, name: str = "") -> Any:
    """What may be published of a record, of which `value` is the field `name`.

    Paths are reduced to their last name; hosts and processes are left out.
    """
    if isinstance(value, dict):
        return {
            key: _public(item, key) for key, item in value.items() if key not in PRIVATE
        }
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, str) or value.startswith("hf:"):
        return value
    # A path gives away a machine and who uses it.
    is_path = name in FILE_FIELDS or value.startswith(("/", "~", ".")) or "://" in value
    if is_path:
        return value.rstrip("/").rpartition("/")[2]
    return value


def _table(heading: str, columns: list[str], rows: list[list[str]]) -> str:
    """A section with a heading and a table in Markdown."""
    lines = [heading, ""]
    for cells in (columns, ["---"] * len(columns), *rows):
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def _number(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)


def _value_at(scores: dict[str, Any], path: tuple[str, ...]) -> Any:
    """The value at a path of names in scores.json; an empty dict if there is none."""
    value = scores
    for name in path:
        value = value.get(name, {})
    return value
