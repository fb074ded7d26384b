"""What does it write? Greedy or sampled text after a prompt.

Text generation: one whole forward pass per token, without a cache of keys and values.

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

# The buffer's length is a multiple of this, so that prompts of about one length share a
# program.
BUFFER = 64


def generate(
    model: LoadedModel,
    prompt: str,
    tokens: int,
    temperature: float = 0.0,
    seed: int = 0,
) -> str:
    """The continuation of a prompt.

    Args:
      prompt: may be empty; the model then begins a document.
      tokens: the most to write; fewer where the model ends the document.
      temperature: divides the logits before an id is drawn; 0 takes the likeliest.
      seed: of the drawing.

    Raises:
      ConfigError: prompt and tokens don't fit in the model, or an argument is negative.
    """
    if tokens < 1 or temperature < 0 or seed < 0:
        raise ConfigError(
            f"--max_new_tokens={tokens} is below 1, or --temperature={temperature} or"
            f" --seed={seed} below 0: raise it"
        )
    tokenizer, max_seq_len = model.source.tokenizer(), model.source.max_seq_len
    ids = tokenizer.beginning(prompt) or [tokenizer.start_id]
    start, stop = len(ids), len(ids) + tokens
    if stop > max_seq_len:
        raise ConfigError(
            f"the prompt's {start} tokens and --max_new_tokens={tokens} exceed the model's"
            f" {max_seq_len}: shorten one"
        )
    buffer_T = np.zeros(-(-stop // BUFFER) * BUFFER, np.int32)
    buffer_T[:start] = ids
    with jax.set_mesh(model.mesh), jax.default_matmul_precision("highest"):
        written_T, end = _write(
            model.net,
            tokenizer.vocab_size,
            tokenizer.eos_id,
            model.params,
            buffer_T,
            start,
            stop,
            temperature,
            jax.random.key(seed),
        )
    return tokenizer.decode(np.asarray(written_T)[start : int(end)].tolist())


@partial(jax.jit, static_argnums=(0, 1, 2))
def _write(
    net: Transformer,
    vocab_size: int,
    eos_id: int,
    params,
    buffer_T,
    start,
    stop,
    temperature,
    key,
):
    """The buffer with what follows position `start`, and the position where that ends.

    It ends at `stop`, or before an end of document.
    """

    def step(carry):
        buffer_T, position, _ = carry
        hidden: Any = net.apply({"params": params}, buffer_T[None], method="hidden")
        h_11D = jax.lax.dynamic_slice_in_dim(hidden[0], position - 1, 1, axis=1)
        logits: Any = net.apply({"params": params}, h_11D, method="logits")
        # A model may have more ids than its tokenizer.
        logits_V = logits[0, 0, :vocab_size]
        drawn = jax.random.categorical(
            jax.random.fold_in(key, position), logits_V / jnp.maximum(temperature, 1e-6)
        )
        token = jnp.where(temperature > 0, drawn, logits_V.argmax())
        token = token.astype(buffer_T.dtype)
        ended = token == eos_id
        # After an end of document the position stays, so that the end is not decoded.
        return buffer_T.at[position].set(token), position + ~ended, ended

    def unfinished(carry):
        _, position, ended = carry
        return (position < stop) & ~ended

    initial = (buffer_T, jnp.asarray(start), jnp.asarray(False))
    buffer_T, end, _ = jax.lax.while_loop(unfinished, step, initial)
    return buffer_T, end
