"""What is a run given, and does it fit together?

Inputs of a run: its experiment and the prepared data that it reads.
"""

import dataclasses
import json
import os

import jax
from etils import epath

from sparsecod_jax import config
from sparsecod_jax.config.identity import identity_fields
from sparsecod_jax.data.store import Manifest, Split, prepare_command, read_manifest
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.parallel.processes import run_on_all, run_on_first
from sparsecod_jax.storage import files
from sparsecod_jax.storage.rundir import RunDir


@dataclasses.dataclass(frozen=True)
class Inputs:
    """An experiment and its data."""

    experiment: config.Experiment
    directory: epath.Path  # of the data
    data: Manifest

    @property
    def identity_fields(self) -> dict:
        """What tells this run from others."""
        return identity_fields(self.experiment, self.data.fingerprint)


def read_inputs(experiment: config.Experiment) -> Inputs:
    """Finds the data of an experiment.

    Raises:
      ConfigError: there is none, or none that can be used.
    """
    directory = run_on_all(files.absolute, experiment.data.path)
    data = run_on_all(read_manifest, directory, prepare_command(experiment))
    return Inputs(experiment, directory, data)


def check_same_everywhere(run: RunDir, inputs: Inputs) -> None:
    """Checks that all processes were started alike.

    Raises:
      ConfigError: on every process, if one of them has other inputs than the first.
    """
    of_first = run_on_first(_as_text, run, inputs)
    run_on_all(_check_same, of_first, _as_text(run, inputs))


def _as_text(run: RunDir, inputs: Inputs) -> str:
    """All that must be the same for every process."""
    experiment = config.to_dict(inputs.experiment)
    return json.dumps([os.fspath(run.path), experiment, inputs.data.fingerprint])


def _check_same(of_first: str, here: str) -> None:
    if here != of_first:
        raise ConfigError(
            f"process {jax.process_index()} was given another --workdir, config or data "
            "than process 0: start all alike"
        )


def check_data(inputs: Inputs) -> None:
    """Checks that model and data have sizes that fit.

    Raises:
      ConfigError: the vocabulary is too small, or a split too short.
    """
    experiment, data = inputs.experiment, inputs.data
    vocab_size = experiment.model.vocab_size
    if vocab_size < data.vocab_size:
        raise ConfigError(
            f"model.vocab_size={vocab_size} is smaller than the tokenizer's "
            f"{data.vocab_size}: raise it to that or above"
        )
    _check_length("data.seq_len", experiment.data.seq_len, data.train)
    _check_length("evaluation.seq_len", experiment.evaluation.seq_len, data.validation)


def _check_length(field: str, length: int, split: Split) -> None:
    if split.tokens <= length:
        raise ConfigError(
            f"{field}={length} is longer than the {split.tokens} tokens of its split: "
            "lower it or prepare more data"
        )
