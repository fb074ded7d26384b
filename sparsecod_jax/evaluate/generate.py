"""What does it write? Greedy or sampled text after a prompt, one whole forward pass a token.

T positions of a buffer, D width, V vocabulary.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.model.transformer import Transformer
from sparsecod_jax.pretrained.load import LoadedModel

BUFFER = 64  # its length is a multiple of this, so that prompts of about one length share a program


def generate(
    finished: LoadedModel,
    prompt: str,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The continuation of a prompt: at most `tokens` tokens, fewer where the model ends the document.

    Args:
      temperature: divides the logits before an id is drawn; 0 takes the likeliest.
      seed: of the drawing.

    Raises:
      ConfigError: prompt and tokens don't fit in the model, or an argument is negative.
    """
    if tokens < 1 or temperature < 0 or seed < 0:
        raise ConfigError(
            f"--tokens={tokens} is below 1, or --temperature={temperature} or --seed={seed} below 0: raise it"
        )
    tokenizer, max_seq_len = finished.source.tokenizer(), finished.source.max_seq_len
    given = tokenizer.beginning(prompt) or [tokenizer.start_id]
    if len(given) + tokens > max_seq_len:
        raise ConfigError(
            f"the prompt's {len(given)} tokens and --tokens={tokens} exceed the model's {max_seq_len}: shorten one"
        )
    buffer_T = np.zeros(-(-(len(given) + tokens) // BUFFER) * BUFFER, np.int32)
    buffer_T[: len(given)] = given
    with jax.set_mesh(finished.mesh), jax.default_matmul_precision("highest"):
        written_T, end = _write(
            finished.net,
            tokenizer.vocab_size,
            tokenizer.eos_id,
            finished.params,
            buffer_T,
            len(given),
            len(given) + tokens,
            temperature,
            jax.random.key(seed),
        )
    return tokenizer.decode(np.asarray(written_T)[len(given) : int(end)].tolist())


@partial(jax.jit, static_argnums=(0, 1, 2))
def _write(
    net: Transformer,
    ids: int,
    eos_id: int,
    params,
    buffer_T,
    start,
    stop,
    temperature,
    key,
):
    """The buffer with what follows position `start`, and where that ends: at `stop`, or before an end of document."""

    def step(carry):
        buffer_T, position, _ = carry
        hidden: Any = net.apply({"params": params}, buffer_T[None], method="hidden")
        h_11D = jax.lax.dynamic_slice_in_dim(hidden[0], position - 1, 1, axis=1)
        logits: Any = net.apply({"params": params}, h_11D, method="logits")
        logits_V = logits[0, 0, :ids]  # a model may have more ids than its tokenizer
        drawn = jax.random.categorical(
            jax.random.fold_in(key, position), logits_V / jnp.maximum(temperature, 1e-6)
        )
        token = jnp.where(temperature > 0, drawn, logits_V.argmax()).astype(
            buffer_T.dtype
        )
        ended = token == eos_id
        return buffer_T.at[position].set(token), position + ~ended, ended

    def goes_on(carry):
        _, position, ended = carry
        return (position < stop) & ~ended

    buffer_T, end, _ = jax.lax.while_loop(
        goes_on, step, (buffer_T, jnp.asarray(start), jnp.asarray(False))
    )
    return buffer_T, end
