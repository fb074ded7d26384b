"""How does a user measure one thing more in every block?

Per-step statistics of your own: Flax shows each call of a block to an interceptor while the
step is traced, and it adds to the statistics that the block returns. So they are part of the
compiled program, and the package needs no hook for them.

B batch, T positions, D width.
"""

from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol

import jax
from flax import linen as nn

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.model.block import Block


class Statistic(Protocol):
    """One scalar per block, from activations [B, T, D]."""

    def __call__(
        self,
        input_BTD: jax.Array,
        attention_BTD: jax.Array,
        ffn_BTD: jax.Array,
        output_BTD: jax.Array,
        /,
    ) -> jax.Array: ...


def measuring(statistics: Mapping[str, Statistic]) -> AbstractContextManager[None]:
    """While it lasts, every block that is traced measures `statistics` too.

    Args:
      statistics: by their names in metrics.jsonl. Each maps the block's input, what attention
        adds, what the FFN adds, and the block's output to a scalar.

    Raises:
      ConfigError: while tracing, if a name is taken or a value is no scalar.
    """
    branches = {}  # of the block that is being traced

    def intercept(call: Any, args: tuple, kwargs: dict, context: Any) -> Any:
        returned = call(*args, **kwargs)
        if type(context.module) is not Block:
            return returned
        if context.method_name == "attention_branch":
            branches["attention"] = returned
        if context.method_name == "ffn_branch":
            branches["ffn"], _ = returned
        if context.method_name != "__call__":
            return returned
        output_BTD, stats = returned
        taps = (args[0], branches["attention"], branches["ffn"], output_BTD)
        return output_BTD, stats | _measured(statistics, stats, taps)

    return nn.intercept_methods(intercept)


def _measured(
    statistics: Mapping[str, Statistic],
    known: Mapping[str, jax.Array],
    taps: tuple[jax.Array, jax.Array, jax.Array, jax.Array],
) -> dict[str, jax.Array]:
    taps = jax.lax.stop_gradient(taps)
    measured = {}
    for name, statistic in statistics.items():
        if name in known:
            raise ConfigError(f"the statistic {name!r} is there already: rename yours")
        value = statistic(*taps)
        if getattr(value, "shape", None) != ():
            message = f"the statistic {name!r} is no scalar: reduce it, as by .mean()"
            raise ConfigError(message)
        measured[name] = value
    return measured
