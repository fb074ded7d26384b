"""Which update follows from a gradient? Clipping, AdamW with an explicit decayed set, and the learning-rate schedule."""

import re

import jax
import jax.numpy as jnp
import optax

from sparsecod_jax import config
from sparsecod_jax.storage.digest import names

# Stacked norm gains are matrices by their number of axes, so the groups go by name.
GROUPS = {
    "embedding": r"^embedding",
    "head": r"^head",
    "matrices": r"^blocks/(attention|ffn)/(?!router)",
    "router": r"^blocks/ffn/router",
    "norms": r"^(final_norm|blocks/(attention|ffn)_norm)/",
}
assert tuple(GROUPS) == config.PARAMETER_GROUPS


def group_of(name: str) -> str:
    """The one parameter group that `name` belongs to."""
    found = [group for group, pattern in GROUPS.items() if re.search(pattern, name)]
    if len(found) != 1:
        raise ValueError(
            f"parameter {name} is in the groups {found}, not in exactly one: extend GROUPS"
        )
    return found[0]


def decay_mask(params, decayed: tuple[str, ...]):
    """A tree of booleans like `params`: whether weight decay acts on each tensor."""
    leaves = [group_of(name) in decayed for name in names(params)]
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def make_optimizer(cfg: config.Optimizer) -> optax.GradientTransformation:
    """Clip by the global norm, Adam with bias correction, add weight_decay * parameter; the learning rate is applied outside."""
    return optax.chain(
        optax.clip_by_global_norm(cfg.clip_norm),
        optax.scale_by_adam(b1=cfg.b1, b2=cfg.b2, eps=cfg.eps),
        optax.add_decayed_weights(
            cfg.weight_decay, mask=lambda params: decay_mask(params, cfg.decayed)
        ),
    )


def learning_rate(experiment: config.Experiment, step: jax.Array | int) -> jax.Array:
    """Learning rate of update `step`, counted from 1: peak * step / warmup below the warm-up, then the chosen schedule."""
    peak, cfg = experiment.optimizer.peak_lr, experiment.schedule
    if cfg.kind == "constant":
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
