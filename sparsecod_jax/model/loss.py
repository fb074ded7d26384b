"""How wrong is a prediction?

B batch, T positions, V vocabulary.
"""

import jax
import jax.numpy as jnp


def token_losses(logits_BTV: jax.Array, targets_BT: jax.Array) -> jax.Array:
    """Cross-entropy of each position in nats, [B, T].

    The target's logit is picked by comparison, not by a gather, so that a vocabulary sharded over devices stays where it is.
    """
    picked_BTV = jnp.where(jnp.arange(logits_BTV.shape[-1])[None, None, :] == targets_BT[..., None], logits_BTV, 0)
    return jax.nn.logsumexp(logits_BTV, axis=-1) - picked_BTV.sum(axis=-1)


def windows(tokens_BT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets, [B, T] each, of windows of T+1 tokens: position t predicts token t+1."""
    return tokens_BT1[:, :-1], tokens_BT1[:, 1:]
