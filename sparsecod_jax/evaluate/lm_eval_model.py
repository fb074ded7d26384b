"""How does lm-eval ask a trained model for log-likelihoods?

Adapter to lm-eval: its requests become rows that are scored on all devices of a mesh.
"""

from collections.abc import Iterator
from typing import Any

import jax
import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from tqdm import tqdm

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.evaluate.likelihood import Row, Score, scores
from sparsecod_jax.pretrained.load import LoadedModel

Tokens = tuple[int, ...]  # of one row


class LanguageModel(TemplateLM):
    """A trained model as lm-eval calls one: log-likelihoods in float32, nats.

    Attention sees a whole sequence, as in the exported model, also where the model was
    trained to stay within documents.

    Attributes:
      truncated: how many requests were too long and lost their beginning.
    """

    def __init__(self, model: LoadedModel):
        super().__init__()
        self.model = model
        self.max_seq_len = model.source.max_seq_len
        self.truncated = 0
        self._tokenizer = model.source.tokenizer()

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
        """The ids of a text.

        Args:
          string: a whole text, which begins as texts began in training.
          add_special_tokens: False where lm-eval passes a piece from within a text.
        """
        if add_special_tokens is False:
            return self._tokenizer.ids(string)
        return self._tokenizer.beginning(string)

    def loglikelihood_rolling(
        self, requests, disable_tqdm: bool = False
    ) -> list[float]:
        """The log-likelihood of each whole text, nats.

        A long text is cut into windows of the longest length, each of which sees the last
        token of the one before it, or more where it is the last and shorter.

        Args:
          requests: of lm-eval, each with a text as its only argument.

        Raises:
          SparsecodError: a log-likelihood is not finite.
        """
        text_numbers, windows = [], []
        for number, request in enumerate(requests):
            (text,) = request.args
            for context, continuation in self._windows(text):
                text_numbers.append(number)
                windows.append((None, context, continuation))
        answers = self._loglikelihood_tokens(windows, disable_tqdm)
        likelihoods = np.array([likelihood for likelihood, _ in answers])
        sums = np.zeros(len(requests))
        np.add.at(sums, np.array(text_numbers, int), likelihoods)
        return sums.tolist()

    def _windows(self, text: str) -> Iterator[tuple[list[int], list[int]]]:
        """Context and continuation of each window of a text.

        Each token of the text is in one continuation, so it is scored once.
        """
        add_special_tokens = None
        if self._tokenizer.before[-1:] == (self._tokenizer.start_id,):
            # Each text begins with the start token anyway; it is not scored after itself.
            add_special_tokens = False
        ids = self.tok_encode(text, add_special_tokens)
        windows = get_rolling_token_windows(
            ids, self.prefix_token_id, self.max_seq_len, context_len=1
        )
        return map(make_disjoint_window, windows)

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Refused, as nothing here samples text for tasks.

        Raises:
          ConfigError: always.
        """
        raise ConfigError(
            "tasks that need generated text are not scored here: leave them out"
        )

    def _loglikelihood_tokens(
        self, requests, disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """The log-likelihood of each continuation, and whether it is greedy.

        Args:
          requests: (strings or None, context ids, continuation ids) each.

        Raises:
          ConfigError: a continuation is empty or does not fit in the model.
          SparsecodError: a log-likelihood is not finite.
        """
        # Requests that differ in their last token alone, as choices of one letter do, are
        # one row of which several predictions are scored.
        columns_of_row: dict[Tokens, dict[tuple[int, int], int]] = {}
        request_columns: list[tuple[Tokens, list[int]]] = []
        for strings, context, continuation in requests:
            tokens, predictions = self._row(strings, context, continuation)
            columns = columns_of_row.setdefault(tokens, {})
            for prediction in predictions:
                columns.setdefault(prediction, len(columns))
            own = [columns[prediction] for prediction in predictions]
            request_columns.append((tokens, own))
        rows = [
            Row(tokens, tuple(columns)) for tokens, columns in columns_of_row.items()
        ]
        score_of_row = self._scores(rows, disable_tqdm)
        # Each request picks its own predictions out of its row's.
        answers = []
        for tokens, own in request_columns:
            score = score_of_row[tokens]
            likelihood = -float(score.losses[own].sum())
            answers.append((likelihood, bool(score.hits[own].all())))
        self._check_finite(answers)
        return answers

    def _check_finite(self, answers: list[tuple[float, bool]]) -> None:
        """Refuses numbers that lm-eval would average into an accuracy without notice."""
        if not np.isfinite([likelihood for likelihood, _ in answers]).all():
            raise SparsecodError(
                f"{self.model.source.path.name} gives log-likelihoods that are not finite:"
                " it has diverged, use an earlier checkpoint"
            )

    def _row(
        self, strings, context: list[int], continuation: list[int]
    ) -> tuple[Tokens, list[tuple[int, int]]]:
        """The row of a request: what the model reads, and the predictions to score.

        Of too many tokens the last are read, which `truncated` counts.

        Raises:
          ConfigError: the continuation is empty or does not fit in the model.
        """
        longest = self.max_seq_len
        if not 0 < len(continuation) <= longest:
            text = "" if strings is None else strings[1][:60]
            raise ConfigError(
                f"{text!r} has {len(continuation)} tokens,"
                f" and the model scores 1 to {longest}: leave out its task"
            )
        whole = context + continuation
        self.truncated += len(whole) > longest + 1
        # The last token is only predicted, so the model does not read it.
        tokens = tuple(whole[-(longest + 1) : -1])
        positions = range(len(tokens) - len(continuation), len(tokens))
        return tokens, list(zip(positions, continuation, strict=True))

    def _scores(self, rows: list[Row], disable_tqdm: bool) -> dict[Tokens, Score]:
        """The scores of all rows, by the tokens of the row."""
        score_of_row = {}
        bar = tqdm(
            total=len(rows),
            desc="log-likelihoods",
            unit="text",
            disable=disable_tqdm or None,
        )
        with (
            bar,
            jax.set_mesh(self.model.mesh),
            jax.default_matmul_precision("highest"),
        ):
            for part in scores(self.model, rows):
                for number, score in part:
                    score_of_row[rows[number].tokens] = score
                bar.update(len(part))
        return score_of_row
