"""Which scores has a model, and where are they written? The verb `analyze`."""

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
from sparsecod_jax.pretrained.load import find_model
from sparsecod_jax.storage import files
from sparsecod_jax.storage.ownership import check_free_or_ours, locked
from sparsecod_jax.storage.records import finite, read_record, write_record
from sparsecod_jax.storage.rundir import AnalysisDir, RunDir, read_loosely


class Options(NamedTuple):
    """What a score may be told."""

    seed: int  # of cuts and probes
    jacobian: Method | None  # None goes by the width


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
    """Scores a model and returns the path of scores.json, which is rewritten after each score.

    Scores that are there already, of the same weights and sequences, are kept. The sequences are saved as tokens.npy beside it.

    Args:
      workdir: a run, whose newest checkpoint that verifies is scored; or else
      hf: a folder of Hugging Face.
      scores: names separated by commas; None is all.
      tokens: an .npy file of integers [N, T], to be scored in place of `sequences` windows of `seq_len` tokens of a `split`.
      data: made by `sparsecod data`, where these windows are; None is the run's own.
      seed: of the drawing of sequences, cuts and probes.
      every_sequence: has each score take all sequences, whatever that costs; else costly ones take
        the first few, as the catalogue says.
      jacobian: how it is measured; None goes by the width.
      out: folder to write; None is `analysis` in the run directory.

    Raises:
      ConfigError: the model, the sequences or a name can't be used, or `out` holds something else; nothing was written.
      Fenced: another process writes scores there.
    """
    source = find_model(workdir, hf)
    if hf is not None and out is None:
        raise ConfigError(
            "nothing is written into a folder of Hugging Face: say with --out where the scores go"
        )
    target = (
        AnalysisDir(files.absolute(out))
        if out is not None
        else RunDir(source.path).analysis
    )
    check_free_or_ours(
        target.path,
        ours=out is None or _is_ours(target),
        option="--out",
        kind="scores of a model",
    )
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
    if "usefulness" in wanted:
        usefulness.check(subject.cfg.d_model, tokens_NT)
    files.make_folder(target.path)
    with (
        locked(target.path),
        jax.set_mesh(subject.mesh),
        jax.default_matmul_precision("highest"),
    ):
        found = _begun(
            target,
            {
                "data": origin | _describe_tokens(tokens_NT),
                "model": _describe_model(subject),
            },
        )
        write_record(
            target.scores, finite(found)
        )  # first, as it says whose folder this is
        files.write_array(target.tokens, tokens_NT)
        if "baseline_loss" not in found:
            found["baseline_loss"] = _baseline_loss(subject)
        for name in wanted:
            used_NT = (
                tokens_NT if every_sequence else tokens_NT[: CATALOGUE[name].sequences]
            )
            kept = name != "jacobian" or _keeps_jacobian(found, jacobian)
            if found["sequences"].get(name) == len(used_NT) and kept:
                log_phase(f"{name} is there already")
                continue
            log_phase(f"{name}, on {len(used_NT)} sequences")
            found |= SCORES[name](subject, used_NT, Options(seed, jacobian))
            found["sequences"][name] = len(used_NT)
            found["computed_with"][name] = {
                "jax": jax.__version__,
                "platform": jax.default_backend(),
            }
            write_record(target.scores, finite(found))
    return target.scores


def _keeps_jacobian(found: dict[str, Any], method: Method | None) -> bool:
    """Whether a Jacobian that is there is what was asked for.

    Earlier versions did not record what a score was computed with. Theirs may come from the compiler
    of docs/compiler_fault.md, so it is computed again.
    """
    if "jacobian" in found and "jacobian" not in found["computed_with"]:
        log_phase(
            "the jacobian that is there may come from a faulty compiler and is computed again"
        )
        return False
    return method in (None, found.get("jacobian", {}).get("method"))


def _is_ours(target: AnalysisDir) -> bool:
    return {"data", "model", "sequences"} <= read_loosely(target.scores).keys()


def _describe_tokens(tokens_NT: np.ndarray) -> dict[str, Any]:
    digest = hashlib.sha256(tokens_NT.astype("<i4").tobytes()).hexdigest()[:16]
    return {
        "sequences": tokens_NT.shape[0],
        "seq_len": tokens_NT.shape[1],
        "digest": digest,
    }


def _describe_model(subject: Subject) -> dict[str, Any]:
    cfg = subject.cfg
    return {
        "step": subject.step,
        "weights": subject.weights,
        "n_layers": cfg.n_layers,
        "d_model": cfg.d_model,
        "parameters": counts.parameters(cfg).total,
        "compute_dtype": cfg.compute_dtype,
    }


def _begun(target: AnalysisDir, subject: dict[str, Any]) -> dict[str, Any]:
    """What has been found so far about this subject."""
    if not target.scores.exists():
        return {**subject, "sequences": {}, "computed_with": {}}
    found = read_record(target.scores)
    found.setdefault("computed_with", {})  # earlier versions did not record it
    for section, values in subject.items():
        other = [
            name for name in values if found.get(section, {}).get(name) != values[name]
        ]
        if other:
            raise ConfigError(
                f"{target.scores} holds scores of another {section} ({', '.join(other)} differ): move it away or give --out"
            )
    return found


def _baseline_loss(subject: Subject) -> float:
    def measure(rows, states_LBTD):
        return network.tail_losses(
            subject.net, subject.params, states_LBTD[-1], subject.cfg.n_layers, rows
        )

    return float(per_sequence(subject, subject.tokens_NT, measure).mean())


def _profile(
    subject: Subject, tokens_NT: np.ndarray, options: Options
) -> dict[str, Any]:
    found = profile.profile(subject, tokens_NT)
    variance = {
        name.removeprefix("variance/"): found.pop(name)
        for name in list(found)
        if name.startswith("variance/")
    }
    return {
        "variance": variance,
        "block_influence": found.pop("block_influence"),
        "profile": found,
    }


def _sparsity(
    subject: Subject, tokens_NT: np.ndarray, options: Options
) -> dict[str, Any]:
    found = {
        "weights": sparsity.weights(subject.params),
        "attention": sparsity.attention(subject, tokens_NT),
        "activations": sparsity.activations(subject, tokens_NT),
    }
    if subject.cfg.n_experts:
        found["experts"] = sparsity.experts(subject, tokens_NT)
    return {"sparsity": found}


def _theory(
    subject: Subject, tokens_NT: np.ndarray, options: Options
) -> dict[str, Any]:
    """Predicted beside measured variance: from the sizes of the weights alone, and with measured attention and gates put in."""
    predict = partial(
        theory.residual_variance,
        subject.cfg,
        theory.measured_scales(subject.params),
        tokens_NT,
        subject.documents(tokens_NT),
    )
    concentration_L = np.mean(
        sparsity.attention(subject, tokens_NT)["heads"]["concentration"], axis=1
    )
    gates_L = (
        np.array(sparsity.gate_squares(subject, tokens_NT))
        if subject.cfg.n_experts
        else None
    )
    measured_L, predicted_L = (
        profile.residual_variance(subject, tokens_NT),
        predict(concentration_L, gates_L),
    )
    return {
        "theory": {
            "measured": measured_L.tolist(),
            "predicted": predicted_L.tolist(),
            "relative_error": (predicted_L / measured_L - 1).tolist(),
            "predicted_from_weights": predict().tolist(),
        }
    }


# The function of each score of the catalogue; what it returns goes into scores.json.
SCORES: dict[str, Callable[[Subject, np.ndarray, Options], dict[str, Any]]] = {
    "profile": _profile,
    "usefulness": lambda subject, tokens_NT, _: {
        "usefulness": usefulness.usefulness(subject, tokens_NT)
    },
    "causal": lambda subject, tokens_NT, options: {
        "causal": causal(subject, tokens_NT, options.seed)
    },
    "permutation": lambda subject, tokens_NT, _: {
        "permutation": permutation(subject, tokens_NT)
    },
    "jacobian": lambda subject, tokens_NT, options: {
        "jacobian": jacobian_distance(
            subject, tokens_NT, options.seed, options.jacobian
        )
    },
    "sparsity": _sparsity,
    "theory": _theory,
}
