"""What do the scores of a model cost, against the straightforward way?

The model has 16 blocks, d=256, 8 x 256 tokens and a vocabulary of 512. The straightforward way
runs the whole network for every intervention, and one jitted VJP with its forward for every
channel. Aims, in block evaluations: permutation at most 0.71 of it, causal and usefulness 0.6;
the exact Jacobian at most half the time of its VJPs. Evaluations are counted as they run.

Command:  python benchmarks/analysis.py      (about ten minutes on two cores)
"""

import time
from collections.abc import Callable
from functools import partial
from typing import Any, cast
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from paired import compare

from sparsecod_jax import config
from sparsecod_jax.analysis import causal, jacobian, network, permutation, usefulness
from sparsecod_jax.analysis.subject import Subject
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.sharding import make_mesh

CFG = config.Model(
    d_model=256,
    n_layers=16,
    n_heads=4,
    d_ff=1024,
    vocab_size=512,
    compute_dtype="float32",
)
SEQUENCES, LENGTH = 8, 256
# The first takes a minute per side.
ROUNDS = {"permutation": 1, "causal": 5, "usefulness": 5}
TIMED_CHANNELS = 16  # of the VJPs; the time of all is in proportion


def main() -> None:
    net = Transformer(CFG, config.Kernels(attention="xla", remat="none"))
    params = nn.unbox(
        jax.jit(net.init)(jax.random.key(0), jnp.zeros((1, 8), jnp.int32))
    )["params"]
    tokens_NT = (
        np.random.default_rng(0)
        .integers(0, CFG.vocab_size, (SEQUENCES, LENGTH))
        .astype(np.int32)
    )
    mesh = make_mesh(config.Mesh(1, 1, 1, 1), jax.devices()[:1])
    with jax.set_mesh(mesh):
        subject = Subject(net, params, mesh, tokens_NT, None, 0, "")
        rows = next(subject.rows(tokens_NT))
        maps = usefulness.fit(subject, tokens_NT)

        ours = {
            "usefulness": partial(usefulness.replaced_losses, subject, tokens_NT, maps),
            "causal": partial(
                causal.effects,
                subject,
                tokens_NT,
                causal.skip,
                np.ones(LENGTH, np.float32),
            ),
            "permutation": partial(permutation.permutation, subject, tokens_NT),
        }
        whole = {
            "permutation": partial(_permutation, net, params, rows),
            "causal": partial(_causal, net, params, rows),
            "usefulness": partial(_usefulness, net, params, rows, maps),
        }
        _compare_jacobian(subject, rows)
        for name, call in ours.items():
            share = _evaluations(call) / _evaluations(whole[name])
            print(
                f"{name}: {share:.2f} of the block evaluations;"
                f" {compare(call, whole[name], ROUNDS[name])}",
                flush=True,
            )


def _evaluations(call: Callable[[], object]) -> int:
    """How many blocks are run, by a count that each of them calls."""
    count = 0

    def counted(self, x_BTD, segments_BT, output=network.BlockAt.output):
        def add():
            nonlocal count
            count += 1

        jax.debug.callback(add)
        return output(self, x_BTD, segments_BT)

    jax.clear_caches()
    with mock.patch.object(network.BlockAt, "output", counted):
        call()
        jax.effects_barrier()
    jax.clear_caches()
    return count


@partial(jax.jit, static_argnums=(0, 7))
def _run(net, params, order_L, cases_L, update_DD, bias_D, rows, with_states):
    """The whole network with its blocks in an order.

    Case 0 runs a block, 1 skips it, 2 puts a map in its place. Losses, or all states.
    """

    def step(x_BTD, place):
        block, case = place
        y_BTD = jax.lax.switch(
            case,
            [
                lambda x: network.BlockAt(net, params, block, block).output(
                    x, rows.segments
                ),
                lambda x: x,
                lambda x: x + x @ update_DD + bias_D[None, None],
            ],
            x_BTD,
        )
        return y_BTD, y_BTD if with_states else None

    x_BTD: Any = net.apply({"params": params}, rows.tokens, method="embed")
    last_BTD, states_LBTD = cast(
        tuple[Any, Any], jax.lax.scan(step, x_BTD, (order_L, cases_L))
    )
    return (
        jnp.concatenate([x_BTD[None], states_LBTD])
        if with_states
        else network.losses(net, params, last_BTD, rows.tokens)
    )


NO_MAP = (
    np.zeros((CFG.d_model, CFG.d_model), np.float32),
    np.zeros(CFG.d_model, np.float32),
)
IN_ORDER, ALL_RUN = np.arange(CFG.n_layers), np.zeros(CFG.n_layers, int)


def _permutation(net, params, rows) -> np.ndarray:
    losses = [_run(net, params, IN_ORDER, ALL_RUN, *NO_MAP, rows, False)]
    for i in range(CFG.n_layers):
        for j in range(i + 1, CFG.n_layers):
            order = IN_ORDER.copy()
            order[[i, j]] = j, i
            losses.append(_run(net, params, order, ALL_RUN, *NO_MAP, rows, False))
    return np.array(losses)


def _causal(net, params, rows) -> np.ndarray:
    intact = _run(net, params, IN_ORDER, ALL_RUN, *NO_MAP, rows, True)
    found = []
    for skipped in IN_ORDER:
        states = _run(
            net,
            params,
            IN_ORDER,
            (skipped == IN_ORDER).astype(int),
            *NO_MAP,
            rows,
            True,
        )
        found.append(
            np.asarray(
                jnp.linalg.norm(
                    (states[1:] - states[:-1]) - (intact[1:] - intact[:-1]), axis=-1
                ).sum(axis=-1)
            )
        )
    return np.array(found)


def _usefulness(net, params, rows, maps) -> np.ndarray:
    losses = [_run(net, params, IN_ORDER, ALL_RUN, *NO_MAP, rows, False)]
    for replaced in IN_ORDER:
        fitted = (
            part[replaced].astype(np.float32)
            for part in (maps.update_LDD, maps.bias_LD)
        )
        losses.append(
            _run(
                net,
                params,
                IN_ORDER,
                2 * (replaced == IN_ORDER).astype(int),
                *fitted,
                rows,
                False,
            )
        )
    return np.array(losses)


def _compare_jacobian(subject: Subject, rows) -> None:
    net, params = subject.net, subject.params
    states_LBTD = network.states(net, params, rows.tokens, rows.segments)

    @jax.jit
    def one_channel(params, x_BTD, number, cotangent_D):
        layer = network.BlockAt(net, params, number, number)
        _, pull = jax.vjp(lambda x: layer.output(x, rows.segments), x_BTD)
        return pull(jnp.broadcast_to(cotangent_D[None, None], x_BTD.shape))[0].sum(
            axis=(0, 1)
        )

    def channels() -> None:
        for number in (0, 8):
            for channel in range(TIMED_CHANNELS):
                jax.block_until_ready(
                    one_channel(
                        params,
                        states_LBTD[number],
                        number,
                        jnp.eye(CFG.d_model)[channel],
                    )
                )

    def ours() -> None:
        for number in (0, 8):
            jax.block_until_ready(
                jacobian.pull(
                    net,
                    params,
                    states_LBTD[number],
                    number,
                    rows.segments,
                    np.ones(SEQUENCES, bool),
                    unit_vectors,
                    None,
                )
            )

    unit_vectors = np.eye(CFG.d_model, dtype=np.float32)[:TIMED_CHANNELS]
    print(
        f"exact Jacobian, {TIMED_CHANNELS} channels of two blocks:"
        f" {compare(ours, channels, rounds=5)}",
        flush=True,
    )
    began = time.perf_counter()
    exact = np.array(
        jacobian.exact(subject, subject.tokens_NT)["distance_from_identity"]
    )
    seconds = time.perf_counter() - began
    began = time.perf_counter()
    found = jacobian.estimate(subject, subject.tokens_NT, seed=0)
    estimated, error = (
        np.array(found["distance_from_identity"]),
        np.array(found["standard_error"]),
    )
    print(
        f"all blocks exactly {seconds:.0f} s, estimated with {found['probes']} probes"
        f" {time.perf_counter() - began:.0f} s; the exact values"
        f" are at most {np.abs((exact - estimated) / error).max():.2f} standard errors off"
    )


if __name__ == "__main__":
    main()
