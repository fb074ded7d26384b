"""What are a run's final numbers?

Final result: final.json, written after the last step and its evaluation. A directory
that has one holds a finished run.
"""

import contextlib
import json
from typing import Any

from sparsecod_jax.config import counts
from sparsecod_jax.config.identity import identity
from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.shell.shown import shown
from sparsecod_jax.storage.records import read_record, warn_if_unchecked, write_record
from sparsecod_jax.storage.rundir import RunDir, check_identity
from sparsecod_jax.train.inputs import Inputs
from sparsecod_jax.train.progress import Progress
from sparsecod_jax.train.writers import plain


def read_result(run: RunDir, fields: dict[str, Any]) -> dict[str, Any] | None:
    """The final numbers, if this run has them already.

    Args:
      run: the run directory; it may not exist.
      fields: the identity of the run that is to be found there.

    Raises:
      ConfigError: the directory holds something else.
    """
    check_identity(run, fields)
    warn_if_unchecked(run.manifest)
    if not run.final.exists():
        return None
    log_phase(f"{shown(run.path)} is already finished")
    final = read_record(run.final)
    if final.get("identity", identity(fields)) != identity(fields):
        raise ConfigError(
            f"{run.final} is of another run than {run.manifest}: "
            "restore it from a copy, or choose another --workdir"
        )
    # A crash may have come between the two files. The result may also lie where nothing
    # can be written any more.
    with contextlib.suppress(OSError):
        run.set_status("finished")
    return final


def final_numbers(
    inputs: Inputs,
    held_out: dict[str, float],
    skipped: int,
    progress: Progress,
    compile_seconds: float,
) -> dict[str, Any]:
    """The content of final.json.

    Args:
      inputs: those of the run.
      held_out: metrics on the validation split.
      skipped: how many updates were left out, as they were not finite.
      progress: holds the seconds that training took.
      compile_seconds: what this attempt needed before its first step.
    """
    experiment = inputs.experiment
    tokens = experiment.steps * experiment.tokens_per_step
    tokens_per_second = tokens / progress.seconds
    flops_per_token = counts.flops_per_token(experiment.model, experiment.data.seq_len)
    return {
        **plain(held_out),
        "identity": identity(inputs.identity_fields),
        "skipped_updates": skipped,
        "unigram_entropy": inputs.data.validation.unigram_entropy,
        "steps": experiment.steps,
        "tokens": tokens,
        "seconds": progress.seconds,
        "tokens_per_second": tokens_per_second,
        "compile_seconds": compile_seconds,
        "flops": tokens * flops_per_token,
        "mfu": progress.mfu(tokens_per_second),
        "flops_convention": counts.FLOPS_CONVENTION,
    }


def write_result(run: RunDir, final: dict[str, Any]) -> None:
    """Writes final.json, or prints its content where that is impossible.

    Raises:
      SparsecodError: it could not be written.
    """
    try:
        write_record(run.final, final)
    except OSError as error:
        print(json.dumps(final), flush=True)
        raise SparsecodError(
            f"{run.final} can't be written ({error.strerror}): make room or mend the "
            "disk, and run the same command, which only evaluates"
        ) from error
