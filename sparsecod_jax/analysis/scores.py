"""Which scores has a model, and where are they written? The subcommand `analyze`.

Layer scores: one after the other into scores.json, which is complete after each.
"""

import hashlib
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import numpy as np
from etils import epath

from sparsecod_jax.analysis import network, profile, sparsity, theory, usefulness
from sparsecod_jax.analysis.catalogue import CATALOGUE, chosen
from sparsecod_jax.analysis.causal import causal
from sparsecod_jax.analysis.jacobian import Method
from sparsecod_jax.analysis.jacobian import jacobian as jacobian_distance
from sparsecod_jax.analysis.permutation import permutation
from sparsecod_jax.analysis.sequences import choose
from sparsecod_jax.analysis.subject import Subject, load, per_sequence
from sparsecod_jax.config import counts
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.pretrained.load import ModelSource, find_model
from sparsecod_jax.storage import files
from sparsecod_jax.storage.ownership import check_free_or_ours, locked
from sparsecod_jax.storage.records import finite, read_record, write_record
from sparsecod_jax.storage.rundir import AnalysisDir, RunDir, read_loosely

Record = dict[str, Any]  # scores.json, or a part of it


class Options(NamedTuple):
    """Options of `analyze` that change how a score is computed.

    Attributes:
      seed: of cuts and probes.
      jacobian: how it is measured; None depends on the width.
    """

    seed: int
    jacobian: Method | None


def analyze(
    workdir: str | None = None,
    *,
    hf: str | None = None,
    scores: str | None = None,
    tokens: str | None = None,
    data: str | None = None,
    sequences: int | None = None,
    seq_len: int | None = None,
    split: str | None = None,
    seed: int = 0,
    every_sequence: bool = False,
    jacobian: Method | None = None,
    out: str | None = None,
) -> epath.Path:
    """Scores a model and returns the path of scores.json, which is rewritten per score.

    Scores that are there already, of the same weights and sequences, are kept. The sequences
    are saved as tokens.npy beside it.

    Args:
      workdir: a run, whose newest checkpoint that verifies is scored; or else
      hf: a Hugging Face model folder.
      scores: names separated by commas; None is all.
      tokens: an .npy file of integers [N, T], to be scored in place of `sequences` windows of
        `seq_len` tokens of a `split`.
      data: made by `sparsecod data`, where these windows are; None is the run's own.
      seed: of the drawing of sequences, cuts and probes.
      every_sequence: has each score take all sequences, whatever that costs; else costly ones
        take the first few, as the catalogue has them.
      jacobian: how it is measured; None depends on the width.
      out: folder to write; None is `analysis` in the run directory.

    Raises:
      ConfigError: the model, the sequences or a name can't be used, or `out` holds something
        else; nothing was written.
      Fenced: another process writes scores there.
    """
    source = find_model(workdir, hf)
    target = _target(source, hf, out)
    wanted = chosen(scores)
    if seed < 0:
        raise ConfigError(f"--seed={seed} is negative: use 0 or more")
    tokens_NT, origin = choose(
        source,
        tokens=tokens,
        data=data,
        sequences=sequences,
        seq_len=seq_len,
        split=split,
        seed=seed,
    )
    subject = load(source, tokens_NT)
    unexplained = subject.cfg.unknown_to(theory.EXPLAINED)
    if unexplained and "theory" in wanted:
        wanted.remove("theory")
        fields = ", ".join(f"model.{name}" for name in unexplained)
        log_phase(f"theory is left out: it does not account for {fields}")
    if "usefulness" in wanted:
        usefulness.check(subject.cfg.d_model, tokens_NT)
    files.make_folder(target.path)
    with (
        locked(target.path),
        jax.set_mesh(subject.mesh),
        jax.default_matmul_precision("highest"),
    ):
        record = _start(target, subject, tokens_NT, origin)
        for name in wanted:
            used_NT = tokens_NT
            if not every_sequence:
                used_NT = tokens_NT[: CATALOGUE[name].sequences]
            _add_score(target, record, name, subject, used_NT, Options(seed, jacobian))
    return target.scores


def _target(source: ModelSource, hf: str | None, out: str | None) -> AnalysisDir:
    """The folder of the scores.

    Raises:
      ConfigError: there is none for this model, or it holds something else.
    """
    if out is not None:
        target = AnalysisDir(files.absolute(out))
    elif hf is None:
        target = RunDir(source.path).analysis
    else:
        raise ConfigError(
            "nothing is written into a Hugging Face model folder:"
            " give the folder of the scores with --out"
        )
    is_ours = out is None or _holds_scores(target)
    check_free_or_ours(
        target.path, ours=is_ours, option="--out", kind="scores of a model"
    )
    return target


def _holds_scores(target: AnalysisDir) -> bool:
    return {"data", "model", "sequences"} <= read_loosely(target.scores).keys()


def _start(
    target: AnalysisDir, subject: Subject, tokens_NT: np.ndarray, origin: Record
) -> Record:
    """Writes what is scored, and returns it with the scores that are there already."""
    data = origin | _describe_tokens(tokens_NT)
    record = _read_scores(target, {"data": data, "model": _describe_model(subject)})
    write_record(target.scores, finite(record))  # first, as it marks the folder as ours
    files.write_array(target.tokens, tokens_NT)
    if "baseline_loss" not in record:
        record["baseline_loss"] = _baseline_loss(subject)
    return record


def _read_scores(target: AnalysisDir, described: Record) -> Record:
    """scores.json as it is, or a new record.

    Raises:
      ConfigError: the scores there are of another model or other sequences.
    """
    if not target.scores.exists():
        return {**described, "sequences": {}, "computed_with": {}}
    record = read_record(target.scores)
    record.setdefault("computed_with", {})  # earlier versions did not record it
    for section, values in described.items():
        recorded = record.get(section, {})
        differing = [name for name in values if recorded.get(name) != values[name]]
        if differing:
            raise ConfigError(
                f"{target.scores} holds scores of another {section}"
                f" ({', '.join(differing)} differ): move it away or give --out"
            )
    return record


def _add_score(
    target: AnalysisDir,
    record: Record,
    name: str,
    subject: Subject,
    tokens_NT: np.ndarray,
    options: Options,
) -> None:
    """Computes a score, unless it is there already, and writes scores.json."""
    is_there = record["sequences"].get(name) == len(tokens_NT)
    if name == "jacobian":
        is_there = _keeps_jacobian(record, options.jacobian) and is_there
    if is_there:
        log_phase(f"{name} is there already")
        return
    log_phase(f"{name}, on {len(tokens_NT)} sequences")
    record |= SCORES[name](subject, tokens_NT, options)
    record["sequences"][name] = len(tokens_NT)
    record["computed_with"][name] = {
        "jax": jax.__version__,
        "platform": jax.default_backend(),
    }
    write_record(target.scores, finite(record))


def _keeps_jacobian(record: Record, method: Method | None) -> bool:
    """Whether a Jacobian that is there was measured by the method that is wanted.

    Earlier versions did not record what a score was computed with. Theirs may come from the
    compiler of docs/compiler_fault.md, so it is computed again.
    """
    if "jacobian" in record and "jacobian" not in record["computed_with"]:
        log_phase(
            "the jacobian that is there may come from a faulty compiler"
            " and is computed again"
        )
        return False
    return method in (None, record.get("jacobian", {}).get("method"))


def _describe_tokens(tokens_NT: np.ndarray) -> Record:
    sequences, seq_len = tokens_NT.shape
    digest = hashlib.sha256(tokens_NT.astype("<i4").tobytes()).hexdigest()[:16]
    return {"sequences": sequences, "seq_len": seq_len, "digest": digest}


def _describe_model(subject: Subject) -> Record:
    cfg = subject.cfg
    return {
        "step": subject.step,
        "weights": subject.weights,
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "parameters": counts.parameters(cfg).total,
        "compute_dtype": cfg.compute_dtype,
    }


def _baseline_loss(subject: Subject) -> float:
    """The intact network's loss on all sequences, nats per token."""
    net, params, layers = subject.net, subject.params, subject.cfg.n_layers

    def measure(rows, states_LBTD):
        return network.tail_losses(net, params, states_LBTD[-1], layers, rows)

    return float(per_sequence(subject, subject.tokens_NT, measure).mean())


def _profile(subject: Subject, tokens_NT: np.ndarray, options: Options) -> Record:
    measures = profile.profile(subject, tokens_NT)
    block_influence = measures.pop("block_influence")
    variance = {}
    for name in list(measures):
        if name.startswith("variance/"):
            variance[name.removeprefix("variance/")] = measures.pop(name)
    return {
        "variance": variance,
        "block_influence": block_influence,
        "profile": measures,
    }


def _usefulness(subject: Subject, tokens_NT: np.ndarray, options: Options) -> Record:
    return {"usefulness": usefulness.usefulness(subject, tokens_NT)}


def _causal(subject: Subject, tokens_NT: np.ndarray, options: Options) -> Record:
    return {"causal": causal(subject, tokens_NT, options.seed)}


def _permutation(subject: Subject, tokens_NT: np.ndarray, options: Options) -> Record:
    return {"permutation": permutation(subject, tokens_NT)}


def _jacobian(subject: Subject, tokens_NT: np.ndarray, options: Options) -> Record:
    distances = jacobian_distance(subject, tokens_NT, options.seed, options.jacobian)
    return {"jacobian": distances}


def _sparsity(subject: Subject, tokens_NT: np.ndarray, options: Options) -> Record:
    measures = {
        "weights": sparsity.weights(subject.params),
        "attention": sparsity.attention(subject, tokens_NT),
        "activations": sparsity.activations(subject, tokens_NT),
    }
    if subject.cfg.n_experts:
        measures["experts"] = sparsity.experts(subject, tokens_NT)
    return {"sparsity": measures}


def _theory(subject: Subject, tokens_NT: np.ndarray, options: Options) -> Record:
    """Predicted beside measured variance of each block.

    Predicted from the scales of the weights alone, and with measured attention and gates put
    in.
    """
    predict = partial(
        theory.residual_variance,
        subject.cfg,
        theory.measured_scales(subject.params),
        tokens_NT,
        subject.documents(tokens_NT),
    )
    heads = sparsity.attention(subject, tokens_NT)["heads"]
    concentration_L = np.mean(heads["concentration"], axis=1)
    gates_L = None
    if subject.cfg.n_experts:
        gates_L = np.array(sparsity.gate_squares(subject, tokens_NT))
    measured_L = profile.residual_variance(subject, tokens_NT)
    predicted_L = predict(concentration_L, gates_L)
    return {
        "theory": {
            "measured": measured_L.tolist(),
            "predicted": predicted_L.tolist(),
            "relative_error": (predicted_L / measured_L - 1).tolist(),
            "predicted_from_weights": predict().tolist(),
        }
    }


# The function of each score of the catalogue; what it returns goes into scores.json.
SCORES: dict[str, Callable[[Subject, np.ndarray, Options], Record]] = {
    "profile": _profile,
    "usefulness": _usefulness,
    "causal": _causal,
    "permutation": _permutation,
    "jacobian": _jacobian,
    "sparsity": _sparsity,
    "theory": _theory,
}
