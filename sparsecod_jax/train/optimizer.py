"""Which update follows from a gradient?

Optimizer: clipping, AdamW with an explicit decayed set, and the learning-rate schedule.
"""

import re

import jax
import jax.numpy as jnp
import optax

from sparsecod_jax import config
from sparsecod_jax.tree import names

# Stacked norm gains are matrices by their number of axes, so the groups go by name.
GROUPS = {
    "embedding": r"^embedding",
    "head": r"^head",
    "matrices": r"^blocks/(attention|ffn)/(?!router|.*norm/)",
    "router": r"^blocks/ffn/router",
    "norms": r"norm/",
}
assert tuple(GROUPS) == config.PARAMETER_GROUPS


def group_of(name: str) -> str:
    """The one parameter group that `name` belongs to.

    Raises:
      ValueError: there is none, or more than one.
    """
    groups = [group for group, pattern in GROUPS.items() if re.search(pattern, name)]
    if len(groups) != 1:
        raise ValueError(
            f"parameter {name} is in the groups {groups}, not in exactly one: "
            "extend GROUPS"
        )
    return groups[0]


def decay_mask(params, decayed: tuple[str, ...]):
    """A tree of booleans like `params`: whether weight decay acts on each tensor."""
    leaves = [group_of(name) in decayed for name in names(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def make_optimizer(cfg: config.Optimizer) -> optax.GradientTransformation:
    """AdamW (Loshchilov and Hutter, 2019) on clipped gradients, without a learning rate.

    Clips by the global norm, then Adam with bias correction, then adds
    weight_decay * parameter. The learning rate is applied outside.
    """

    def mask(params):
        return decay_mask(params, cfg.decayed)

    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
        optax.add_decayed_weights(cfg.weight_decay, mask=mask),
    )


def learning_rate(experiment: config.Experiment, step: jax.Array | int) -> jax.Array:
    """Learning rate of update `step`, counted from 1.

    During the warm-up it is peak * step / warmup_steps; then it follows the schedule.
    """
    peak, cfg = experiment.optimizer.peak_lr, experiment.schedule
    if cfg.kind == "constant":
        # optax.warmup_constant_schedule rounds otherwise, and is 0 without a warm-up.
        warm_up = jnp.minimum(1.0, jnp.asarray(step) / max(cfg.warmup_steps, 1))
        return peak * warm_up
    schedule = optax.warmup_cosine_decay_schedule(
        0.0,
        peak,
        warmup_steps=cfg.warmup_steps,
        decay_steps=experiment.steps,
        end_value=peak * cfg.final_fraction,
    )
    return jnp.asarray(schedule(step))
