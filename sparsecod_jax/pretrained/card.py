"""What does a model say about itself? The README.md of an exported folder."""

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

COLUMNS = [
    column for score in IN_REPORTS for column in score.card
]  # of the table of layers
PLACES = ("path", "source", "tokenizer")  # fields that name files
PRIVATE = (
    "host",
    "hostname",
    "pid",
    "workdir",
    "coordinator",
)  # what a record may say of a machine
WIDTH = 125  # of a line of text


def write(run: RunDir, model: LoadedModel) -> str:
    """Markdown: what the model is, how it was trained, how well it predicts, and what each layer contributes, as far as that is known."""
    manifest = read_record(run.manifest)
    sections = [
        _description(run.path.name, model),
        _results(run, model.step),
        _layers(run, model.weights),
        _training(run, manifest),
    ]
    return HEAD + "\n" + "\n\n".join(section for section in sections if section) + "\n"


def _description(name: str, model: LoadedModel) -> str:
    cfg, sizes = model.source.model, counts.parameters(model.source.model)
    kind = f"{cfg.n_experts} experts, {cfg.top_k} a token" if cfg.n_experts else "dense"
    lines = [
        f"# {name}",
        "",
        f"A Pre-LN language model of {cfg.n_layers} blocks of width {cfg.d_model} ({kind}), {sizes.total:,} parameters, of which"
        f" {sizes.activated:,} are active a token; checkpoint {model.step} of its training. Sequences of up to"
        f" {model.source.max_seq_len:,} tokens; every document ended with the end-of-text token, and {_beginning(model)}.",
    ]
    if cfg.document_masking:
        lines.append(
            "It was trained with attention within documents, which stock code does not know: give it one document at a time."
        )
    if cfg.layer_norm_scaling:
        lines.append(
            "It was trained with LayerNorm Scaling, whose factors are folded into the gains."
        )
    return "\n".join(lines)


def _beginning(model: LoadedModel) -> str:
    tokenizer = model.source.tokenizer()
    first = "".join(
        f" `{tokenizer.inner.id_to_token(number)}`" for number in tokenizer.before
    )
    return (
        f"began with{first}, which the tokenizer puts there"
        if first
        else "none began with a token of its own"
    )


def _results(run: RunDir, step: int) -> str:
    final = read_record(run.final) if run.final.exists() else {}
    if final.get("steps") != step:
        return ""
    numbers = {
        name: final[name]
        for name in ("loss", "perplexity", "bits_per_byte", "unigram_entropy")
        if name in final
    }
    rows = [
        [name.replace("_", " "), _number(value, ".4f")]
        for name, value in numbers.items()
    ]
    return _table("## Held-out text", ["measure", "value"], rows)


def _layers(run: RunDir, weights: str) -> str:
    """The scores of these weights, a row a layer."""
    scores = read_record(run.analysis.scores) if run.analysis.scores.exists() else {}
    if scores.get("model", {}).get("weights") != weights:
        return ""
    found = {column.name: _find(scores, column.path) for column in COLUMNS}
    columns = {name: values for name, values in found.items() if values}
    if not columns:
        return ""
    rows = [
        [str(layer + 1), *(_number(value, ".4g") for value in row)]
        for layer, row in enumerate(zip(*columns.values(), strict=True))
    ]
    data = scores["data"]
    measured = f"Measured on {data['sequences']} sequences of {data['seq_len']} tokens, or the first of them."
    reading = textwrap.fill(
        " ".join(column.reading for column in COLUMNS if column.reading), WIDTH
    )
    heading = f"## What each layer contributes\n\n{reading} {measured}"
    return _table(heading, ["block", *columns], rows)


def _training(run: RunDir, manifest: dict[str, Any]) -> str:
    made_with, config = (
        json.dumps(_public(values), indent=1)
        for values in (manifest, read_record(run.config))
    )
    return f"## Training\n\nManifest:\n\n```json\n{made_with}\n```\n\nConfig:\n\n```json\n{config}\n```"


def _public(value: Any, name: str = "") -> Any:
    """What may be told of a record, and of what it has under `name`: of places their last name, and nothing of hosts and processes."""
    if isinstance(value, dict):
        return {
            key: _public(item, key) for key, item in value.items() if key not in PRIVATE
        }
    if isinstance(value, list):
        return [_public(item) for item in value]
    if not isinstance(value, str) or value.startswith("hf:"):
        return value
    is_place = name in PLACES or value.startswith(("/", "~", ".")) or "://" in value
    return value.rstrip("/").rpartition("/")[2] if is_place else value


def _table(heading: str, columns: list[str], rows: list[list[str]]) -> str:
    lines = [
        f"| {' | '.join(cells)} |" for cells in (columns, ["---"] * len(columns), *rows)
    ]
    return "\n".join([heading, "", *lines])


def _number(value: float | None, style: str) -> str:
    return "–" if value is None else format(value, style)


def _find(scores: dict[str, Any], path: tuple[str, ...]) -> Any:
    for name in path:
        scores = scores.get(name, {})
    return scores
