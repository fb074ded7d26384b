"""What was this run made with?

Run manifest: versions, commit, devices, counts and identity.
"""

import dataclasses
import importlib.metadata
import platform
import sys

import jax

from sparsecod_jax import __version__, config
from sparsecod_jax.config import counts
from sparsecod_jax.config.identity import identity
from sparsecod_jax.parallel.layout import Layout
from sparsecod_jax.storage.commit import commit

PACKAGES = (
    "jax",
    "jaxlib",
    "flax",
    "optax",
    "orbax-checkpoint",
    "grain",
    "numpy",
    "ml-collections",
    "tensorboardX",
    "tokenizers",
)


def describe(
    experiment: config.Experiment,
    layout: Layout,
    identity_fields: dict,
    tokenizer: dict,
) -> dict:
    """The manifest of a run as plain JSON values.

    Args:
      experiment: the config as given.
      layout: what was chosen for these devices.
      identity_fields: what tells the run from others.
      tokenizer: the framing of its data.
    """
    devices = {
        "kind": jax.devices()[0].device_kind,
        "count": jax.device_count(),
        "processes": jax.process_count(),
    }
    flops_per_token = counts.flops_per_token(experiment.model, experiment.data.seq_len)
    return {
        "sparsecod_jax": __version__,
        "commit": commit(),
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "packages": {name: importlib.metadata.version(name) for name in PACKAGES},
        "devices": devices,
        "mesh": dataclasses.asdict(layout.mesh),
        "execution": dataclasses.asdict(layout.decided(experiment.execution)),
        "parameters": dataclasses.asdict(counts.parameters(experiment.model)),
        "flops_per_token": flops_per_token,
        "flops_convention": counts.FLOPS_CONVENTION,
        "tokenizer": tokenizer,
        "residual_dtype": experiment.model.residual_dtype,
        "identity": identity(identity_fields),
        "identity_fields": identity_fields,
    }
