"""How likely does it find a text? A finished model, as lm-eval asks it.

B rows, T positions, C of them whose prediction is asked for, D width.
"""

import math
from collections.abc import Iterable, Iterator
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sparsecod_jax.data.pipeline import local_rows, to_devices
from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.finished import Finished
from sparsecod_jax.model import Transformer
from sparsecod_jax.model.loss import losses_and_hits
from sparsecod_jax.sharding import batch_sharding, constrain, ways

TOKENS = 2**13  # on a device at once, unless a single sequence is longer
SHORTEST = 16  # padded length
FEW = 4  # a row of which at most a 1/FEW of the predictions are asked for computes only so many logits


class Row(NamedTuple):
    """A sequence that the model reads once, and what is asked about it."""

    tokens: tuple[int, ...]
    slots: dict[tuple[int, int], int]  # from a position and the id after it to a number, in order


class Asked(NamedTuple):
    """One request: the log-likelihood of `targets` at the last positions of a row."""

    row: Row
    slots: list[int]


class LanguageModel(TemplateLM):
    """Log-likelihoods in float32 on all devices of a mesh; `truncated` counts requests whose left end did not fit.

    Attention sees a whole sequence, as in the exported model, also where the model was trained to stay within documents.
    """

    def __init__(self, finished: Finished):
        super().__init__()
        self.finished = finished
        self.truncated = 0

    @property
    def eot_token_id(self) -> int:
        return self.finished.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        return self.finished.tokenizer.start_id

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """The ids of a text; no token is added to it."""
        return self.finished.tokenizer.ids(string)

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """The log-likelihood of each whole text, of which each window of the longest length sees nothing of the one before but a token."""
        owners, windows = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            ids = self.tok_encode(text)
            for pair in get_rolling_token_windows(ids, self.prefix_token_id, self.finished.longest, 1):
                owners.append(number)
                windows.append((None, *make_disjoint_window(pair)))
        found = self._loglikelihood_tokens(windows, disable_tqdm)
        sums = np.zeros(len(requests))
        np.add.at(sums, np.array(owners, int), np.array([likelihood for likelihood, _ in found]))
        return sums.tolist()

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        raise ConfigError("tasks that need text to be generated can't be scored here: choose tasks that score given texts")

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs: Any) -> list[tuple[float, bool]]:
        """For each (strings or None, context ids, continuation ids) the continuation's log-likelihood, and whether it is greedy."""
        rows: dict[tuple[int, ...], Row] = {}
        asked = [self._ask(rows, *request) for request in requests]
        with (
            jax.set_mesh(self.finished.mesh),
            jax.default_matmul_precision("highest"),
            tqdm(total=len(rows), desc="log-likelihoods", unit="text", disable=disable_tqdm or None) as bar,
        ):
            scores = {}
            for part in _scores(self.finished, list(rows.values())):
                scores |= part
                bar.update(len(part))
        answers = []
        for row, slots in asked:
            losses, hits = scores[row.tokens]
            answers.append((-float(losses[slots].sum()), bool(hits[slots].all())))
        if not np.isfinite([likelihood for likelihood, _ in answers]).all():
            raise SparsecodError(f"{self.finished.name} gives log-likelihoods that are not finite: its parameters are damaged or diverged")
        return answers

    def _ask(self, rows: dict[tuple[int, ...], Row], strings, context: list[int], continuation: list[int]) -> Asked:
        """Finds or makes the row of a request: choices that differ in their last token alone share one."""
        longest = self.finished.longest
        if not 0 < len(continuation) <= longest:
            raise ConfigError(f"the choice {strings[1][:60]!r} has {len(continuation)} tokens, the model takes 1 to {longest}: drop its task")
        whole = context + continuation
        self.truncated += len(whole) > longest + 1
        tokens = tuple(whole[-(longest + 1) : -1])
        row = rows.setdefault(tokens, Row(tokens, {}))
        first = len(tokens) - len(continuation)
        places = [(first + number, target) for number, target in enumerate(continuation)]
        return Asked(row, [row.slots.setdefault(place, len(row.slots)) for place in places])


def padded(length: int, longest: int) -> int:
    """The smallest of the few lengths 16, 24, 32, 48, 64, 96, ... and `longest` that is at least `length`."""
    power = 2 ** math.ceil(math.log2(max(length, SHORTEST)))
    size = power * 3 // 4 if length <= power * 3 // 4 and power > SHORTEST else power
    return longest if length <= longest < size else size


def _scores(finished: Finished, rows: list[Row]) -> Iterator[dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]]:
    """The losses and hits [C] of each row's slots, float64 and bool, a batch of rows of one shape at a time, the longest first."""
    shapes: dict[tuple[int, int], list[Row]] = {}
    for row in rows:
        T = padded(max(len(row.tokens), len(row.slots)), finished.longest)
        C = T // FEW if len(row.slots) <= T // FEW else T
        shapes.setdefault((T, C), []).append(row)
    waiting = None
    for T, C in sorted(shapes, reverse=True):
        for batch in _batches(finished, shapes[T, C], T, C):
            if waiting:  # the devices compute the next batch while the last one is read
                yield _read(*waiting)
            waiting = batch
    if waiting:
        yield _read(*waiting)


def _batches(finished: Finished, rows: list[Row], T: int, C: int) -> Iterator[tuple[list[Row], Any]]:
    """Rows and their scores, not yet waited for; all batches have one shape."""
    sharding, devices = batch_sharding(finished.mesh), ways("batch")
    size = devices * min(max(TOKENS // T, 1), math.ceil(len(rows) / devices))
    here = local_rows(sharding, size)
    for first in range(0, len(rows), size):
        part = rows[first : first + size]
        tokens = _array((row.tokens for row in part), (size, T))
        positions = _array(([position for position, _ in row.slots] for row in part), (size, C))
        targets = _array(([target for _, target in row.slots] for row in part), (size, C))
        arrays = to_devices((tokens[here], positions[here], targets[here]), here, sharding, size)
        yield part, _losses_and_hits(finished.net, finished.params, *arrays)


def _array(rows: Iterable, shape: tuple[int, int]) -> np.ndarray:
    """int32, filled up with zeros on the right and below."""
    array = np.zeros(shape, np.int32)
    for number, row in enumerate(rows):
        array[number, : len(row)] = row
    return array


def _read(rows: list[Row], found: tuple[jax.Array, jax.Array]) -> dict[tuple[int, ...], tuple[np.ndarray, np.ndarray]]:
    losses_BC, hits_BC = (np.asarray(z_BC) for z_BC in found)
    return {
        row.tokens: (losses_BC[number, : len(row.slots)].astype(np.float64), hits_BC[number, : len(row.slots)])
        for number, row in enumerate(rows)
    }


@partial(jax.jit, static_argnums=0)
def _losses_and_hits(net: Transformer, params, tokens_BT, positions_BC, targets_BC):
    hidden: Any = net.apply({"params": params}, tokens_BT, method="hidden")
    h_BCD = jnp.take_along_axis(hidden[0], positions_BC[..., None], axis=1)
    return losses_and_hits(constrain(h_BCD, "batch", "length", "width"), params["head"], targets_BC)
