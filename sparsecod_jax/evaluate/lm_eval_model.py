"""How likely does it find a text? A finished model, as lm-eval asks it."""

from typing import Any

import jax
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.evaluate.likelihood import Row, Score, scores
from sparsecod_jax.pretrained.load import LoadedModel


class LanguageModel(TemplateLM):
    """Log-likelihoods in float32 on all devices of a mesh; `truncated` counts requests whose beginning did not fit.

    Attention sees a whole sequence, as in the exported model, also where the model was trained to stay within documents.
    """

    def __init__(self, finished: LoadedModel):
        super().__init__()
        self.finished = finished
        self.max_seq_len = finished.source.max_seq_len
        self.truncated = 0
        self._tokenizer = finished.source.tokenizer()

    @property
    def eot_token_id(self) -> int:
        """The id that ends a document."""
        return self._tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The id that stands before a text without context."""
        return self._tokenizer.start_id

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs
    ) -> list[int]:
        """The ids of a text from its beginning, as the model was trained on it, or of a piece of one where lm-eval says so."""
        return (
            self._tokenizer.ids(string)
            if add_special_tokens is False
            else self._tokenizer.beginning(string)
        )

    def loglikelihood_rolling(
        self, requests, disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each whole text: windows of the longest length, each of which sees one token of the one before."""
        # What stands before a text anyway is not scored after itself.
        framed = (
            False
            if self._tokenizer.before[-1:] == (self._tokenizer.start_id,)
            else None
        )
        owners, windows = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for pair in get_rolling_token_windows(
                self.tok_encode(text, framed), self.prefix_token_id, self.max_seq_len, 1
            ):
                owners.append(number)
                windows.append((None, *make_disjoint_window(pair)))
        found = self._loglikelihood_tokens(windows, disable_tqdm)
        sums = np.zeros(len(requests))
        np.add.at(
            sums,
            np.array(owners, int),
            np.array([likelihood for likelihood, _ in found]),
        )
        return sums.tolist()

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Refused: raises ConfigError."""
        raise ConfigError(
            "tasks that need generated text are not scored here: leave them out"
        )

    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """For each (strings or None, context ids, continuation ids) the continuation's log-likelihood, and whether it is greedy.

        Raises:
          ConfigError: a continuation is empty or does not fit in the model.
          SparsecodError: a log-likelihood is not finite.
        """
        # Requests that differ in their last token alone, as choices of one letter, are one row that is asked several things.
        rows: dict[tuple[int, ...], dict[tuple[int, int], int]] = {}
        places = []
        for strings, context, continuation in requests:
            tokens, asked = self._question(strings, context, continuation)
            known = rows.setdefault(tokens, {})
            places.append(
                (tokens, [known.setdefault(pair, len(known)) for pair in asked])
            )
        found = self._scores(
            [Row(tokens, tuple(asked)) for tokens, asked in rows.items()], disable_tqdm
        )
        answers = []
        for tokens, asked in places:
            score = found[tokens]
            answers.append(
                (-float(score.losses[asked].sum()), bool(score.hits[asked].all()))
            )
        if not np.isfinite([likelihood for likelihood, _ in answers]).all():
            raise SparsecodError(
                f"{self.finished.source.path.name} gives log-likelihoods that are not finite: it has diverged, use an earlier checkpoint"
            )
        return answers

    def _question(
        self, strings, context: list[int], continuation: list[int]
    ) -> tuple[tuple[int, ...], list[tuple[int, int]]]:
        """The tokens that the model reads for a request, the last of those that are too many, and the pairs that it is asked about."""
        max_seq_len = self.max_seq_len
        if not 0 < len(continuation) <= max_seq_len:
            text = "" if strings is None else strings[1][:60]
            raise ConfigError(
                f"{text!r} has {len(continuation)} tokens, and the model scores 1 to {max_seq_len}: leave out its task"
            )
        whole = context + continuation
        self.truncated += len(whole) > max_seq_len + 1
        tokens = tuple(whole[-(max_seq_len + 1) : -1])
        return tokens, list(
            zip(
                range(len(tokens) - len(continuation), len(tokens)),
                continuation,
                strict=True,
            )
        )

    def _scores(
        self, rows: list[Row], disable_tqdm: bool
    ) -> dict[tuple[int, ...], Score]:
        found = {}
        with (
            jax.set_mesh(self.finished.mesh),
            jax.default_matmul_precision("highest"),
            tqdm(
                total=len(rows),
                desc="log-likelihoods",
                unit="text",
                disable=disable_tqdm or None,
            ) as bar,
        ):
            for part in scores(self.finished, rows):
                found |= {rows[number].tokens: score for number, score in part}
                bar.update(len(part))
        return found
