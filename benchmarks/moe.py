"""What does a mixture of experts cost?

It is compared with a dense model of equal activated parameters, and with computing every expert.
Aims on CPU: a step at least 0.8 of the dense model's tokens/s; at 64 experts, top 8, a layer at
least 5 times faster than all experts.

Command:  python benchmarks/moe.py
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from paired import Stepper, compare, experiment, program

from sparsecod_jax.model.moe import run_experts
from sparsecod_jax.model.router import route
from sparsecod_jax.train.step import loss_and_gradients

EXPERTS, TOP_K, TOKENS, WIDTH = 64, 8, 4096, 256


def step(rounds: int) -> None:
    """Whole steps, then gradients alone.

    What remains is the optimizer, which has 3.3 times the parameters to update.
    """
    base = experiment(seq_len=512)
    shape = dataclasses.replace(base.model, vocab_size=8192, d_ff=512)
    mixture = dataclasses.replace(shape, d_ff=256, n_experts=16, top_k=2)
    sides = [
        program(dataclasses.replace(base, model=model)) for model in (mixture, shape)
    ]
    mixed, dense = (Stepper(side) for side in sides)
    print(f"step, mixture against dense: {compare(mixed, dense, rounds)}", flush=True)

    def gradients(stepper: Stepper):
        compute = jax.jit(
            partial(loss_and_gradients, stepper.experiment.model, stepper.layout)
        )
        return lambda: jax.block_until_ready(
            compute(stepper.state.params, stepper.batch)
        )

    print(
        f"gradients alone: {compare(gradients(mixed), gradients(dense), rounds)}",
        flush=True,
    )


def layer(rounds: int, hidden: int) -> None:
    """One layer, forward and gradient."""
    keys = jax.random.split(jax.random.key(0), 5)
    x_ND = jax.random.normal(keys[0], (TOKENS, WIDTH))
    router_DE = jax.random.normal(keys[1], (WIDTH, EXPERTS)) / 16
    shapes = (
        (EXPERTS, WIDTH, hidden),
        (EXPERTS, WIDTH, hidden),
        (EXPERTS, hidden, WIDTH),
    )
    weights = [
        jax.random.normal(key, shape) / 16
        for key, shape in zip(keys[2:], shapes, strict=True)
    ]

    def chosen(x_ND, router_DE, weights):
        routing = route((x_ND @ router_DE)[None], TOP_K, normalize=False)
        return run_experts(
            x_ND, routing.experts_BTS[0], routing.gates_BTS[0], *weights
        )[0]

    def every(x_ND, router_DE, weights):
        """In a loop over experts, which is the fastest of the ways tried."""
        gates_NS, experts_NS = jax.lax.top_k(jax.nn.softmax(x_ND @ router_DE), TOP_K)
        gates_EN = jnp.einsum(
            "ns,nse->en", gates_NS, jax.nn.one_hot(experts_NS, EXPERTS)
        )

        def add(y_ND, expert):
            (gate_DF, up_DF, down_FD), gate_N = expert
            return y_ND + gate_N[:, None] * (
                (jax.nn.silu(x_ND @ gate_DF) * (x_ND @ up_DF)) @ down_FD
            ), None

        return jax.lax.scan(add, jnp.zeros_like(x_ND), (weights, gates_EN))[0]

    def gradient(layer):
        compute = jax.jit(
            jax.grad(lambda *args: jnp.square(layer(*args)).sum(), argnums=(0, 1, 2))
        )
        return lambda: jax.block_until_ready(compute(x_ND, router_DE, weights))

    sizes = f"{EXPERTS} experts of width {hidden}, top {TOP_K}, {TOKENS} tokens"
    print(
        f"layer, {sizes}, every expert against the chosen:"
        f" {compare(gradient(every), gradient(chosen), rounds)}",
        flush=True,
    )


if __name__ == "__main__":
    layer(8, hidden=256)
    layer(8, hidden=512)
    step(10)
