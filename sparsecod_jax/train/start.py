"""With which state does an attempt start, and what does it put on record first?

Start of an attempt: the newest checkpoint that verifies, or a fresh state.
"""

from typing import Any

from sparsecod_jax import config
from sparsecod_jax.config import counts
from sparsecod_jax.config.identity import identity_fields
from sparsecod_jax.data.tokenizer import TOKENIZER
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.processes import log_phase
from sparsecod_jax.storage import files
from sparsecod_jax.storage.checkpoint import Checkpointer, check_room
from sparsecod_jax.storage.records import write_record
from sparsecod_jax.storage.rundir import RunDir
from sparsecod_jax.train import manifest
from sparsecod_jax.train.inputs import Inputs
from sparsecod_jax.train.step import Program, TrainState

FRESH = {"step": 0, "next_example": 0, "seconds": 0.0}  # the record before any step


def check_room_for_first_save(run: RunDir, program: Program) -> None:
    """Refuses a run whose next checkpoint would find no room.

    Raises:
      SparsecodError: the disk is too full.
    """
    # After the last step only the evaluation is left, which saves nothing.
    if run.newest_checkpoint() < program.experiment.steps:
        check_room(run.checkpoints, program.abstract_state)


def restore_or_init(
    run: RunDir, inputs: Inputs, program: Program, checkpointer: Checkpointer
) -> tuple[TrainState, dict[str, Any]]:
    """The state to start from, and the record that was saved with it.

    Raises:
      ConfigError: no checkpoint can be used, or the newest belongs to another run.
    """
    log_phase("looking for a checkpoint")
    restored = checkpointer.restore_latest({"state": program.abstract_state})
    if restored is None:
        total = counts.parameters(inputs.experiment.model).total
        log_phase(f"initialising {total:,} parameters")
        return program.init(), FRESH
    record = restored.record
    saved = config.from_dict(record["config"])
    fields = identity_fields(saved, record["data_fingerprint"])
    if fields != inputs.identity_fields:
        raise ConfigError(
            f"checkpoint {restored.step} of {run.path} belongs to another run: "
            "choose another --workdir"
        )
    log_phase(f"restored step {restored.step}")
    return restored.items["state"], record


def write_records(run: RunDir, inputs: Inputs, program: Program) -> None:
    """Writes config, manifest and tokenizer: what makes the directory this run's."""
    write_record(run.config, config.to_dict(inputs.experiment))
    tokenizer = inputs.directory / TOKENIZER
    description = manifest.describe(
        inputs.experiment,
        program.layout,
        inputs.identity_fields,
        inputs.data.framing(),
    )
    description["tokenizer_digest"] = files.digest(tokenizer)
    write_record(run.manifest, description)
    files.write(run.tokenizer, tokenizer.read_bytes())
