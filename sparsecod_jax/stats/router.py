"""How healthy is the routing of a mixture of experts?

Router statistics: how evenly tokens spread over experts.

L blocks, E experts.
"""

import jax
import jax.numpy as jnp
from jax.scipy.special import entr

# Counts of tokens or of choices: those of a step are the sum over its microbatches. Every
# other statistic is averaged over them.
SUMMED = ("router/counts", "router/dropped")


def summarise(stats: dict[str, jax.Array]) -> dict[str, jax.Array]:
    """The statistics of a step, its counts reduced to the load.

    Args:
      stats: with the tokens that each expert got, `router/counts` [L, E]. Those of a dense
        model have none and are returned as they are.
    """
    if "router/counts" not in stats:
        return stats
    rest = {name: value for name, value in stats.items() if name != "router/counts"}
    return rest | expert_load(stats["router/counts"])


def expert_load(counts_LE: jax.Array) -> dict[str, jax.Array]:
    """How evenly tokens spread over experts, [L] each.

    The largest load over the mean, the entropy of the load over its maximum log E, and the
    share of experts without a token.
    """
    mean_L1 = counts_LE.mean(axis=-1, keepdims=True)
    share_LE = counts_LE / counts_LE.sum(axis=-1, keepdims=True)
    max_load_L = (counts_LE / mean_L1).max(axis=-1)
    entropy_L = entr(share_LE).sum(axis=-1)
    # One expert has no entropy to divide by.
    largest_entropy = jnp.log(max(counts_LE.shape[-1], 2))
    return {
        "router/max_load": max_load_L,
        "router/load_entropy": entropy_L / largest_entropy,
        "router/dead_experts": (counts_LE == 0).mean(axis=-1),
    }
