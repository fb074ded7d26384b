"""How wrong are the predictions? The head and its cross-entropy, a few positions at a time, so that logits never exist for the whole batch.

B batch, T positions, N chunks, C positions of a chunk, D width, V vocabulary; inside `shard_map` B and V are this device's part.
"""

import jax
import jax.numpy as jnp

from sparsecod_jax.parallel import sharding
from sparsecod_jax.tree import at_least_float32

LOGITS = (
    2**27
)  # of a chunk on a device: 512 MiB as float32, beside the same for their gradient
_ROWS, _HEAD = ("batch", "length"), ("embed", "vocab")


@jax.custom_vjp
def cross_entropy(
    h_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> jax.Array:
    """The sum over positions of weight times cross-entropy in nats, a scalar in at least float32.

    Products are taken in the dtype of `h_BTD`, sums and softmax in at least float32. A gradient is computed beside the value, chunk by
    chunk, while the logits are at hand: softmax less the target's one. There is none for the weights.

    Raises:
      ValueError: a gradient is taken of rows that the mesh does not divide.
    """
    return token_losses(h_BTD, head_DV, targets_BT, weights_BT).sum()


def token_losses(
    h_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array, weights_BT: jax.Array
) -> jax.Array:
    """What `cross_entropy` sums, [B, T]; to be looked at, not differentiated, as it would keep all logits for that."""
    axes = ((*_ROWS, "width"), _HEAD, _ROWS, _ROWS)
    return sharding.shard_map(_losses, axes, (_ROWS,))(
        h_BTD, head_DV, targets_BT, weights_BT
    )[0]


def losses_and_hits(
    h_BTD: jax.Array, head_DV: jax.Array, targets_BT: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The cross-entropy of each target in nats, and whether it is the likeliest id (of several, the lowest), [B, T] each."""
    axes = ((*_ROWS, "width"), _HEAD, _ROWS)
    return sharding.shard_map(_losses_and_hits, axes, (_ROWS, _ROWS))(
        h_BTD, head_DV, targets_BT
    )


def _forward(h_BTD, head_DV, targets_BT, weights_BT):
    if len(h_BTD) % sharding.ways("batch"):
        raise ValueError(
            f"{len(h_BTD)} rows do not divide over {sharding.ways('batch')} devices: take a multiple"
        )
    axes = ((*_ROWS, "width"), _HEAD, _ROWS, _ROWS)
    mapped = sharding.shard_map(
        _losses_and_gradients, axes, (_ROWS, (*_ROWS, "width"), _HEAD)
    )
    losses_BT, grad_h_BTD, grad_head_DV = mapped(h_BTD, head_DV, targets_BT, weights_BT)
    return losses_BT.sum(), (grad_h_BTD, grad_head_DV)


def _backward(grads, cotangent):
    grad_h_BTD, grad_head_DV = ((grad * cotangent).astype(grad.dtype) for grad in grads)
    return grad_h_BTD, grad_head_DV, None, None


cross_entropy.defvjp(_forward, _backward)


def _losses(h_BTD, head_DV, targets_BT, weights_BT):
    head_DV = sharding.gather(head_DV.astype(h_BTD.dtype), "embed", 0)

    def chunk(_, part):
        h_BCD, targets_BC, weights_BC = part
        logits_BCV, one_BCV, normalizer_BC = _logits(h_BCD, head_DV, targets_BC)
        return None, _weighted(logits_BCV, one_BCV, normalizer_BC, weights_BC)

    _, losses_NBC = jax.lax.scan(
        chunk, None, _chunks(head_DV, h_BTD, targets_BT, weights_BT)
    )
    return (_whole(losses_NBC),)


def _losses_and_hits(h_BTD, head_DV, targets_BT):
    head_DV = sharding.gather(head_DV.astype(h_BTD.dtype), "embed", 0)

    def chunk(_, part):
        h_BCD, targets_BC = part
        logits_BCV, one_BCV, normalizer_BC = _logits(h_BCD, head_DV, targets_BC)
        target_BC1 = _target_logits(logits_BCV, one_BCV)[..., None]
        lower_BCV = _ids(head_DV)[None, None, :] < targets_BC[..., None]
        likelier_BCV = (logits_BCV > target_BC1) | (
            lower_BCV & (logits_BCV == target_BC1)
        )
        hits_BC = sharding.total(likelier_BCV.sum(axis=-1), "vocab") == 0
        return None, (normalizer_BC - target_BC1[..., 0], hits_BC)

    _, found = jax.lax.scan(chunk, None, _chunks(head_DV, h_BTD, targets_BT))
    return tuple(_whole(z_NBC) for z_NBC in found)


def _losses_and_gradients(h_BTD, head_DV, targets_BT, weights_BT):
    """The losses, and the gradients of their sum over all devices."""
    param_dtype = head_DV.dtype
    head_DV = sharding.gather(head_DV.astype(h_BTD.dtype), "embed", 0)
    wide = at_least_float32(h_BTD).dtype

    def chunk(grad_head_DV, part):
        h_BCD, targets_BC, weights_BC = part
        logits_BCV, one_BCV, normalizer_BC = _logits(h_BCD, head_DV, targets_BC)
        softmax_BCV = jnp.exp(logits_BCV - normalizer_BC[..., None])
        grad_BCV = (weights_BC[..., None] * (softmax_BCV - one_BCV)).astype(h_BCD.dtype)
        grad_h_BCD = sharding.total(
            jnp.einsum("bcv,dv->bcd", grad_BCV, head_DV, preferred_element_type=wide),
            "vocab",
        )
        grad_head_DV += jnp.einsum(
            "bcd,bcv->dv", h_BCD, grad_BCV, preferred_element_type=wide
        )
        return grad_head_DV, (
            _weighted(logits_BCV, one_BCV, normalizer_BC, weights_BC),
            grad_h_BCD.astype(h_BCD.dtype),
        )

    parts = _chunks(head_DV, h_BTD, targets_BT, weights_BT)
    grad_head_DV, (losses_NBC, grad_h_NBCD) = jax.lax.scan(
        chunk, jnp.zeros(head_DV.shape, wide), parts
    )
    grad_head_DV = sharding.total(
        sharding.scatter_sum(grad_head_DV, "embed", 0), "replicas"
    )
    return _whole(losses_NBC), _whole(grad_h_NBCD), grad_head_DV.astype(param_dtype)


def _logits(h_BCD, head_DV, targets_BC):
    """Logits, a one at each target, and the log of the softmax's denominator."""
    wide = at_least_float32(h_BCD).dtype
    logits_BCV = jnp.einsum("bcd,dv->bcv", h_BCD, head_DV, preferred_element_type=wide)
    peak_BC = sharding.largest(logits_BCV.max(axis=-1), "vocab")
    normalizer_BC = peak_BC + jnp.log(
        sharding.total(jnp.exp(logits_BCV - peak_BC[..., None]).sum(axis=-1), "vocab")
    )
    return (
        logits_BCV,
        _ids(head_DV)[None, None, :] == targets_BC[..., None],
        normalizer_BC,
    )


def _ids(head_DV):
    """The ids whose logits this device computes, [V]."""
    return jnp.arange(head_DV.shape[1]) + sharding.position("vocab") * head_DV.shape[1]


def _target_logits(logits_BCV, one_BCV):
    return sharding.total(jnp.where(one_BCV, logits_BCV, 0).sum(axis=-1), "vocab")


def _weighted(logits_BCV, one_BCV, normalizer_BC, weights_BC):
    return weights_BC * (normalizer_BC - _target_logits(logits_BCV, one_BCV))


def _chunks(head_DV, *parts):
    """Each [B, T, ...] as [N, B, C, ...], for the smallest N that divides T and leaves a chunk with at most LOGITS logits, or N = T."""
    B, T = parts[0].shape[:2]
    divisors = (count for count in range(1, T + 1) if T % count == 0)
    chunks = next(
        (count for count in divisors if B * (T // count) * head_DV.shape[1] <= LOGITS),
        T,
    )
    return tuple(
        z.reshape(B, chunks, T // chunks, *z.shape[2:]).swapaxes(0, 1) for z in parts
    )


def _whole(z_NBC):
    """The inverse of `_chunks`."""
    z_BNC = z_NBC.swapaxes(0, 1)
    return z_BNC.reshape(z_BNC.shape[0], -1, *z_BNC.shape[3:])


def windows(tokens_BT1: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Inputs and targets, [B, T] each, of windows of T+1 tokens: position t predicts token t+1."""
    return tokens_BT1[:, :-1], tokens_BT1[:, 1:]
