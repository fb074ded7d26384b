"""What happens in one training step?

Train step: one optimizer step, however many microbatches it has. Training, planning and
benchmarks compile what `build` returns.

B rows of the global batch, M microbatches, T positions, L blocks, D residual width.
"""

import dataclasses
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from flax import linen as nn
from flax import struct
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from sparsecod_jax.config import Experiment, Model
from sparsecod_jax.model.router import auxiliary_loss
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.parallel.layout import Layout, resolve
from sparsecod_jax.parallel.sharding import batch_sharding, make_mesh, tree_shardings
from sparsecod_jax.stats.block import layer_norms
from sparsecod_jax.stats.router import SUMMED, summarise
from sparsecod_jax.storage.digest import array_digest
from sparsecod_jax.train.optimizer import learning_rate, make_optimizer


class Batch(NamedTuple):
    """The rows of one step."""

    tokens: Any  # [B, T + 1] int32

    # [B, T] int32: attention stays within equal numbers.
    segments: Any = None


class TrainState(struct.PyTreeNode):
    """Everything that a step changes."""

    step: jax.Array  # updates done, skipped ones included
    skipped: jax.Array  # updates left out because the loss or a gradient was not finite
    params: Any
    opt_state: Any


@dataclasses.dataclass(frozen=True)
class Program:
    """The pure functions of one experiment in one layout, with the shardings of their arguments."""

    experiment: Experiment
    layout: Layout
    mesh: jax.sharding.Mesh
    abstract_state: TrainState  # shapes, dtypes and shardings
    abstract_batch: Batch

    def init(self) -> TrainState:
        """A fresh state, born sharded; it does not depend on the mesh."""
        shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        make = jax.jit(
            lambda: nn.unbox(_initial_state(self.experiment, self.layout)),
            out_shardings=shardings,
        )
        with jax.set_mesh(self.mesh):
            return make()

    def lower(self, *, with_moments: bool):
        """The train step before compilation.

        It maps (state, batch) to (state, metrics) and reuses the memory of the state.
        """
        state_shardings = jax.tree.map(lambda leaf: leaf.sharding, self.abstract_state)
        step = partial(
            train_step,
            self.experiment,
            self.layout,
            state_shardings.params,
            with_moments,
        )
        replicated = NamedSharding(self.mesh, P())
        jitted = jax.jit(
            step, donate_argnums=0, out_shardings=(state_shardings, replicated)
        )
        with jax.set_mesh(self.mesh):
            return jitted.lower(self.abstract_state, self.abstract_batch)


def build(experiment: Experiment, devices: Sequence[Any], slices: int = 0) -> Program:
    """The program of `experiment` on these devices.

    Nothing is computed or allocated yet.

    Args:
      experiment: the config as given.
      devices: all devices of the run; they need not be here.
      slices: as for `resolve`.

    Raises:
      ConfigError: as `resolve` does.
    """
    layout = resolve(experiment, devices, slices)
    mesh = make_mesh(layout.mesh, devices)
    boxed = jax.eval_shape(partial(_initial_state, experiment, layout))
    abstract_state = jax.tree.map(
        _with_sharding, nn.unbox(boxed), tree_shardings(mesh, boxed)
    )
    rows, length = experiment.global_batch, experiment.data.seq_len
    integers = partial(
        jax.ShapeDtypeStruct, dtype=jnp.int32, sharding=batch_sharding(mesh)
    )
    segments = integers((rows, length)) if experiment.model.document_masking else None
    abstract_batch = Batch(integers((rows, length + 1)), segments)
    return Program(experiment, layout, mesh, abstract_state, abstract_batch)


def _with_sharding(leaf, sharding) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding)


def _initial_state(experiment: Experiment, layout: Layout) -> TrainState:
    model = Transformer(experiment.model, layout.kernels)
    # The shape of the tokens does not matter to the parameters.
    tokens_BT = jnp.zeros((1, 8), jnp.int32)
    variables = model.init(jax.random.key(experiment.seed), tokens_BT)
    params = variables["params"]
    opt_state = make_optimizer(experiment.optimizer).init(params)
    return TrainState(
        step=jnp.int32(0), skipped=jnp.int32(0), params=params, opt_state=opt_state
    )


def train_step(
    experiment: Experiment,
    layout: Layout,
    param_shardings,
    with_moments: bool,
    state: TrainState,
    batch: Batch,
):
    """One update.

    Args:
      experiment: static.
      layout: static.
      param_shardings: those of the parameters, also for the gradients; None leaves
        gradients to the compiler.
      with_moments: static; adds the costly statistics.
      state: before the update.
      batch: the rows to learn from.

    Returns:
      The new state and the metrics: scalars, or arrays [L] with one value per block.
      They describe the state before the update; `skipped_updates` includes it.
    """
    loss, grads, stats = loss_and_gradients(
        experiment.model, layout, state.params, batch, with_moments=with_moments
    )
    if param_shardings is not None:
        grads = jax.lax.with_sharding_constraint(grads, param_shardings)
    grad_norm = optax.global_norm(grads)
    lr = learning_rate(experiment, state.step + 1)
    finite = jnp.isfinite(loss) & jnp.isfinite(grad_norm)
    # The norms first: fused with the update they would keep it from writing in place,
    # and the parameters would be copied.
    parameter_norm_L, before = jax.lax.optimization_barrier(
        (layer_norms(state.params["blocks"]), state.params)
    )
    # Selected element by element: a conditional would copy parameters and moments.
    updated = _update(experiment, before, state.opt_state, grads, lr)
    params, opt_state = jax.tree.map(
        partial(jnp.where, finite), updated, (before, state.opt_state)
    )
    metrics = {
        "loss": loss,
        "lr": lr,
        "grad_norm": grad_norm,
        "skipped_updates": state.skipped + ~finite,
        "batch_digest": array_digest(batch.tokens)[0],
        "norm/gradient": layer_norms(grads["blocks"]),
        "norm/parameter": parameter_norm_L,
        **summarise(stats),
    }
    if experiment.model.n_experts:
        metrics["auxiliary_loss"] = auxiliary_loss(experiment.model, stats)
    new_state = TrainState(state.step + 1, state.skipped + ~finite, params, opt_state)
    return new_state, metrics


def loss_and_gradients(
    model: Model, layout: Layout, params, batch: Batch, *, with_moments: bool = False
):
    """The mean token loss of the whole batch, its gradients and the block statistics.

    The gradients are those of this loss plus the auxiliary losses, which are not part of
    it. With microbatches the sums over tokens are the same; auxiliary losses and
    statistics are averaged over microbatches, and those in SUMMED are added.
    """
    net = Transformer(model, layout.kernels, with_moments)
    microbatches = layout.microbatches
    predictions = batch.tokens[:, 1:].size

    def loss_fn(params, part: Batch):
        summed, stats = net.apply(
            {"params": params}, part.tokens, part.segments, method="loss"
        )
        loss = summed / predictions
        return loss + auxiliary_loss(model, stats) / microbatches, (loss, stats)

    gradient = jax.grad(loss_fn, has_aux=True)
    if microbatches == 1:
        grads, (loss, stats) = gradient(params, batch)
        return loss, grads, stats

    def add(total, part: Batch):
        grads, (loss, stats) = gradient(params, part)
        return jax.tree.map(jnp.add, total, (loss, grads)), stats

    # Rows m, m + M, ... form microbatch m, so that a device's rows stay where they are.
    parts = jax.tree.map(
        lambda rows: rows.reshape(-1, microbatches, rows.shape[-1]).swapaxes(0, 1),
        batch,
    )
    zero = (
        jnp.zeros((), jnp.promote_types(model.compute_dtype, jnp.float32)),
        jax.tree.map(jnp.zeros_like, params),
    )
    (loss, grads), stats_M = jax.lax.scan(add, zero, parts)
    stats = {
        name: values_M.sum(axis=0) if name in SUMMED else values_M.mean(axis=0)
        for name, values_M in stats_M.items()
    }
    return loss, grads, stats


def _update(experiment: Experiment, params, opt_state, grads, lr):
    optimizer = make_optimizer(experiment.optimizer)
    updates, opt_state = optimizer.update(grads, opt_state, params)
    params = jax.tree.map(lambda p, u: p - (lr * u).astype(p.dtype), params, updates)
    return params, opt_state
