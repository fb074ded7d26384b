"""How healthy is the routing of a mixture of experts?

L blocks, E experts.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

# Counts of tokens or choices: a step's are the sum over its microbatches. Every other
# statistic is averaged over them.
SUMMED = ("router/counts", "router/dropped")


def summarise(stats: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The statistics of a step, with the tokens that each expert got, `router/counts` [L, E], reduced to `load` [L]; no-op when dense."""
    if "router/counts" not in stats:
        return stats
    rest = {name: value for name, value in stats.items() if name != "router/counts"}
    return rest | expert_load(stats["router/counts"])


def expert_load(counts_LE: jax.Array) -> dict[str, jax.Array]:
    """How evenly tokens spread over experts: largest load over the mean, entropy over its maximum, share of experts without a token."""
    mean_L1 = counts_LE.mean(axis=-1, keepdims=True)
    share_LE = counts_LE / counts_LE.sum(axis=-1, keepdims=True)
    experts = counts_LE.shape[-1]
    return {
        "router/max_load": (counts_LE / mean_L1).max(axis=-1),
        "router/load_entropy": entr(share_LE).sum(axis=-1)
        / jnp.log(max(experts, 2)),  # one expert has no entropy to divide by
        "router/dead_experts": (counts_LE == 0).mean(axis=-1),
    }
