"""What is a run? Its config, checked when it is built; nothing here needs jax."""

from sparsecod_jax.config.experiment import (
    PARAMETER_GROUPS,
    AskedKernel,
    AttentionKernel,
    Checkpoint,
    Data,
    Dtype,
    Evaluation,
    Execution,
    Experiment,
    Kernels,
    Log,
    Mesh,
    Model,
    Optimizer,
    Remat,
    Schedule,
)
from sparsecod_jax.config.values import flatten, from_dict, to_dict

__all__ = [
    "PARAMETER_GROUPS",
    "AskedKernel",
    "AttentionKernel",
    "Checkpoint",
    "Data",
    "Dtype",
    "Evaluation",
    "Execution",
    "Experiment",
    "Kernels",
    "Log",
    "Mesh",
    "Model",
    "Optimizer",
    "Remat",
    "Schedule",
    "flatten",
    "from_dict",
    "to_dict",
]
