"""How wrong are the predictions?

Loss: the head and its cross-entropy, a few positions at a time, so that logits never exist
for the whole batch.

B batch, T positions, N chunks, C positions of a chunk, D width, V vocabulary; inside
`shard_map` B and V are this device's part.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from sparsecod_jax.parallel import sharding
from sparsecod_jax.tree import at_least_float32

# Of a chunk on a device: 512 MiB as float32, beside the same for their gradient.
LOGITS = 2**27

# Logical axes of targets and weights, of hidden states, of the head.
_ROWS = ("batch", "length")
_HIDDEN = ("batch", "length", "width")
_HEAD = ("embed", "vocab")


@jax.custom_vjp
def cross_entropy(
    h_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> jax.Array:
    """The sum over positions of weight times cross-entropy, nats; a scalar.

    Products are taken in the dtype of `h_BTD`, sums and softmax in at least float32. The
    gradients are computed beside the value, chunk by chunk, while the logits are at hand.
    There is none for the weights.

    Args:
      h_BTD: the residual stream after the final norm.
      head_DV: scores of the ids are h @ head.
      targets_BT: the ids to predict.
      weights_BT: of the predictions.

    Raises:
      ValueError: a gradient is taken of rows that the mesh does not divide.
    """
    return token_losses(h_BTD, head_DV, targets_BT, weights_BT).sum()


def token_losses(
    h_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> jax.Array:
    """What `cross_entropy` sums, [B, T].

    Not to be differentiated: that would keep all logits.
    """
    mapped = sharding.shard_map(_losses, (_HIDDEN, _HEAD, _ROWS, _ROWS), (_ROWS,))
    (losses_BT,) = mapped(h_BTD, head_DV, targets_BT, weights_BT)
    return losses_BT


def losses_and_hits(
    h_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of each target and whether it is the likeliest id, [B, T] each.

    In nats. Of several ids that are equally likely, the lowest counts as the likeliest.
    """
    mapped = sharding.shard_map(
        _losses_and_hits, (_HIDDEN, _HEAD, _ROWS), (_ROWS, _ROWS)
    )
    return mapped(h_BTD, head_DV, targets_BT)


def _forward(h_BTD, head_DV, targets_BT, weights_BT):
    ways = sharding.ways("batch")
    if len(h_BTD) % ways:
        raise ValueError(
            f"{len(h_BTD)} rows do not divide over {ways} devices: take a multiple"
        )
    mapped = sharding.shard_map(
        _losses_and_gradients,
        (_HIDDEN, _HEAD, _ROWS, _ROWS),
        (_ROWS, _HIDDEN, _HEAD),
    )
    losses_BT, grad_h_BTD, grad_head_DV = mapped(h_BTD, head_DV, targets_BT, weights_BT)
    return losses_BT.sum(), (grad_h_BTD, grad_head_DV)


def _backward(grads, cotangent):
    """The gradients that `_forward` has computed, times what the sum's own gradient is."""
    grad_h_BTD, grad_head_DV = ((grad * cotangent).astype(grad.dtype) for grad in grads)
    return grad_h_BTD, grad_head_DV, None, None


cross_entropy.defvjp(_forward, _backward)


def _losses(h_BTD, head_DV, targets_BT, weights_BT):
    head_DV = sharding.gather(head_DV.astype(h_BTD.dtype), "embed", 0)

    def chunk(_, part):
        h_BCD, targets_BC, weights_BC = part
        predicted = _predict(h_BCD, head_DV, targets_BC)
        return None, _weighted(predicted, weights_BC)

    parts = _chunks(head_DV, h_BTD, targets_BT, weights_BT)
    _, losses_NBC = jax.lax.scan(chunk, None, parts)
    return (_whole(losses_NBC),)


def _losses_and_hits(h_BTD, head_DV, targets_BT):
    head_DV = sharding.gather(head_DV.astype(h_BTD.dtype), "embed", 0)

    def chunk(_, part):
        h_BCD, targets_BC = part
        logits_BCV, one_BCV, normalizer_BC = _predict(h_BCD, head_DV, targets_BC)
        target_BC1 = _target_logits(logits_BCV, one_BCV)[..., None]
        # The target is a hit where no id comes before it: none has a larger logit, and
        # none that is lower has an equal one. Each device counts among its own ids.
        lower_BCV = _ids(head_DV)[None, None, :] < targets_BC[..., None]
        likelier_BCV = (logits_BCV > target_BC1) | (
            lower_BCV & (logits_BCV == target_BC1)
        )
        hits_BC = sharding.total(likelier_BCV.sum(axis=-1), "vocab") == 0
        return None, (normalizer_BC - target_BC1[..., 0], hits_BC)

    parts = _chunks(head_DV, h_BTD, targets_BT)
    _, (losses_NBC, hits_NBC) = jax.lax.scan(chunk, None, parts)
    return _whole(losses_NBC), _whole(hits_NBC)


def _losses_and_gradients(h_BTD, head_DV, targets_BT, weights_BT):
    """The losses, and the gradients of their sum over all devices.

    With logits z = h @ head, the gradient of -log softmax(z)[target] with respect to z is
    softmax(z) less a one at the target; from there it goes to h and to the head.
    """
    param_dtype = head_DV.dtype
    head_DV = sharding.gather(head_DV.astype(h_BTD.dtype), "embed", 0)
    wide = at_least_float32(h_BTD).dtype

    def chunk(grad_head_DV, part):
        h_BCD, targets_BC, weights_BC = part
        predicted = _predict(h_BCD, head_DV, targets_BC)
        softmax_BCV = jnp.exp(predicted.logits_BCV - predicted.normalizer_BC[..., None])
        grad_BCV = weights_BC[..., None] * (softmax_BCV - predicted.one_BCV)
        grad_BCV = grad_BCV.astype(h_BCD.dtype)
        # A device has the logits of its ids alone: what these ask of h is added up.
        grad_h_BCD = jnp.einsum(
            "bcv,dv->bcd", grad_BCV, head_DV, preferred_element_type=wide
        )
        grad_h_BCD = sharding.total(grad_h_BCD, "vocab")
        # The head's gradient is a sum over all positions: it is carried from chunk to chunk.
        grad_head_DV += jnp.einsum(
            "bcd,bcv->dv", h_BCD, grad_BCV, preferred_element_type=wide
        )
        losses_BC = _weighted(predicted, weights_BC)
        return grad_head_DV, (losses_BC, grad_h_BCD.astype(h_BCD.dtype))

    parts = _chunks(head_DV, h_BTD, targets_BT, weights_BT)
    zero_DV = jnp.zeros(head_DV.shape, wide)
    grad_head_DV, (losses_NBC, grad_h_NBCD) = jax.lax.scan(chunk, zero_DV, parts)
    # Every device saw its own rows. The sum over those that share out the head's width
    # leaves each its part; then come the devices that hold the same part.
    grad_head_DV = sharding.scatter_sum(grad_head_DV, "embed", 0)
    grad_head_DV = sharding.total(grad_head_DV, "replicas")
    return _whole(losses_NBC), _whole(grad_h_NBCD), grad_head_DV.astype(param_dtype)


class _Predicted(NamedTuple):
    """Predictions of a chunk.

    Attributes:
      logits_BCV: in at least float32.
      one_BCV: True at each target.
      normalizer_BC: the log of the softmax's denominator, over the ids of all devices.
    """

    logits_BCV: jax.Array
    one_BCV: jax.Array
    normalizer_BC: jax.Array


def _predict(h_BCD, head_DV, targets_BC) -> _Predicted:
    wide = at_least_float32(h_BCD).dtype
    logits_BCV = jnp.einsum("bcd,dv->bcv", h_BCD, head_DV, preferred_element_type=wide)
    # log sum exp(z) = peak + log sum exp(z - peak), which can't overflow.
    peak_BC = sharding.largest(logits_BCV.max(axis=-1), "vocab")
    sum_BC = jnp.exp(logits_BCV - peak_BC[..., None]).sum(axis=-1)
    normalizer_BC = peak_BC + jnp.log(sharding.total(sum_BC, "vocab"))
    one_BCV = _ids(head_DV)[None, None, :] == targets_BC[..., None]
    return _Predicted(logits_BCV, one_BCV, normalizer_BC)


def _ids(head_DV):
    """The ids whose logits this device computes, [V]."""
    V = head_DV.shape[1]
    return jnp.arange(V) + sharding.position("vocab") * V


def _target_logits(logits_BCV, one_BCV):
    """The logit of each target, which one of the devices computes, [B, C]."""
    return sharding.total(jnp.where(one_BCV, logits_BCV, 0).sum(axis=-1), "vocab")


def _weighted(predicted: _Predicted, weights_BC):
    """Weight times cross-entropy, [B, C]: the normalizer less the target's logit."""
    target_BC = _target_logits(predicted.logits_BCV, predicted.one_BCV)
    return weights_BC * (predicted.normalizer_BC - target_BC)


def _chunks(head_DV, *parts):
    """Each [B, T, ...] as [N, B, C, ...].

    N is the smallest divisor of T that leaves a chunk with at most LOGITS logits, or T.
    """
    B, T = parts[0].shape[:2]
    V = head_DV.shape[1]
    divisors = [count for count in range(1, T + 1) if T % count == 0]
    fitting = (count for count in divisors if B * (T // count) * V <= LOGITS)
    N = next(fitting, T)
    split = (z.reshape(B, N, T // N, *z.shape[2:]) for z in parts)
    return tuple(z.swapaxes(0, 1) for z in split)


def _whole(z_NBC):
    """The inverse of `_chunks`."""
    z_BNC = z_NBC.swapaxes(0, 1)
    return z_BNC.reshape(z_BNC.shape[0], -1, *z_BNC.shape[3:])


def windows(tokens_BT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets, [B, T] each, of windows of T + 1 tokens.

    Position t predicts token t + 1.
    """
    return tokens_BT1[:, :-1], tokens_BT1[:, 1:]
