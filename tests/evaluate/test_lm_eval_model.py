"""lm-eval's requests against numpy, and against lm-eval's own `hf` model on the same weights."""

import subprocess
import sys
from typing import Any

import jax
import numpy as np
import pytest

from tests.support import llamas, loaded_models, numpy_model, tiny_configs

pytest.importorskip("lm_eval", reason="needs the extra eval")

from lm_eval.api.instance import Instance

from sparsecod_jax.errors import ConfigError, SparsecodError
from sparsecod_jax.evaluate import likelihood, lm_eval_model
from sparsecod_jax.evaluate.lm_eval_model import LanguageModel
from sparsecod_jax.pretrained.load import find_model, load_model

LONGEST = 48
WORDS = (
    "a of in and it was not the river stone light under old paper walks green quiet seven"
    " bird wind"
)


def _requests(kind: str, arguments: list[tuple]) -> list[Instance]:
    return [
        Instance(kind, {}, argument, number)  # pyright: ignore[reportArgumentType]
        for number, argument in enumerate(arguments)
    ]


def _text(rng, words: int) -> str:
    return " ".join(rng.choice(WORDS.split(), words))


@pytest.fixture(scope="module")
def pairs():
    """Contexts with four choices each.

    Short ones, as long as the model and longer; none; ending in spaces; choices of one letter.
    """
    rng = np.random.default_rng(0)
    result = []
    for words in (0, 1, 3, 5, 9, 14, 30):
        context = _text(rng, words)
        result += [(context, " " + _text(rng, count)) for count in (1, 2, 4, 7)]
    result += [("the river  ", "stone"), ("The light is", " green")]
    same = _text(rng, 6) + " Answer:"
    return result + [(same, f" {letter}") for letter in "ABCD"]


@pytest.fixture(scope="module")
def texts():
    rng = np.random.default_rng(1)
    return [_text(rng, words) for words in (1, 5, 11, 40, 90)] + [""]


@pytest.fixture(scope="module")
def params():
    return loaded_models.sharpened(tiny_configs.MODEL)


def _log_softmax(params, tokens: list[int]) -> np.ndarray:
    logits = numpy_model.forward(params, np.array([tokens]), tiny_configs.MODEL)[0][0]
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def test_equals_numpy(params, pairs):
    """Letters are ids here, so where context ends and continuation begins is plain to see."""
    model = LanguageModel(loaded_models.load(params, max_seq_len=LONGEST))
    answers = model.loglikelihood(_requests("loglikelihood", pairs), disable_tqdm=True)
    cut = 0
    for (context, choice), (answer, greedy) in zip(pairs, answers, strict=True):
        whole = (
            loaded_models.Letters().ids(context + choice)
            if context
            else [loaded_models.Letters.start_id, *loaded_models.Letters().ids(choice)]
        )
        count = (
            len(choice) + len(context) - len(context.rstrip())
        )  # spaces at the end of a context belong to the choice
        cut += len(whole) > LONGEST + 1
        whole = whole[-LONGEST - 1 :]
        log_softmax = _log_softmax(params, whole[:-1])[-count:]
        assert answer == pytest.approx(
            log_softmax[np.arange(count), whole[-count:]].sum(), rel=1e-5
        )
        assert greedy == (log_softmax.argmax(-1) == whole[-count:]).all()
    assert model.truncated == cut > 0


def test_greedy_choices_are_found(params):
    model = LanguageModel(loaded_models.load(params, max_seq_len=LONGEST))
    context = "the quiet"
    best = _log_softmax(params, loaded_models.Letters().ids(context))[-1].argmax()
    requests: list = [
        (None, loaded_models.Letters().ids(context), [int(best)]),
        (None, loaded_models.Letters().ids(context), [int(best) + 1]),
    ]
    assert [
        greedy for _, greedy in model._loglikelihood_tokens(requests, disable_tqdm=True)
    ] == [True, False]


def test_rolling_equals_numpy(params):
    """Each id is predicted once, by a window that ends with it at the latest."""
    text = "".join(np.random.default_rng(2).choice(list("abcdefgh "), 110))
    model = LanguageModel(loaded_models.load(params, max_seq_len=LONGEST))
    (result,) = model.loglikelihood_rolling(
        _requests("loglikelihood_rolling", [(text,)]), disable_tqdm=True
    )
    ids = [loaded_models.Letters.start_id, *loaded_models.Letters().ids(text)]
    expected = 0.0
    for first, last in ((1, 48), (49, 96), (97, 110)):  # what each window predicts
        window = ids[last - LONGEST : last + 1]
        log_softmax = _log_softmax(params, window[:-1])
        count = last - first + 1
        expected += log_softmax[-count:][np.arange(count), window[-count:]].sum()
    assert result == pytest.approx(expected, rel=1e-5)
    assert not model.truncated


def test_choices_of_one_token_share_a_row(params, monkeypatch):
    seen = []
    monkeypatch.setattr(
        lm_eval_model,
        "scores",
        lambda model, rows: seen.extend(rows) or likelihood.scores(model, rows),
    )
    model = LanguageModel(loaded_models.load(params))
    answers = model.loglikelihood(
        _requests("loglikelihood", [("Answer:", letter) for letter in "ABCD"]),
        disable_tqdm=True,
    )
    assert len(seen) == 1
    log_softmax = _log_softmax(params, loaded_models.Letters().ids("Answer:"))[-1]
    assert [answer for answer, _ in answers] == pytest.approx(
        [log_softmax[ord(letter)] for letter in "ABCD"], rel=1e-5
    )


@pytest.mark.parametrize("choice", ["x" * (LONGEST + 1), ""])
def test_a_choice_that_can_not_be_scored_is_refused(params, choice):
    model = LanguageModel(loaded_models.load(params, max_seq_len=LONGEST))
    with pytest.raises(ConfigError, match=f"the model scores 1 to {LONGEST}"):
        model.loglikelihood(
            _requests("loglikelihood", [("a", choice)]), disable_tqdm=True
        )


def test_numbers_that_are_not_finite_are_refused(params):
    broken = params | {"head": np.full_like(params["head"], np.nan)}
    with pytest.raises(SparsecodError, match="not finite"):
        LanguageModel(loaded_models.load(broken)).loglikelihood(
            _requests("loglikelihood", [("a", "b")]), disable_tqdm=True
        )


def test_generation_is_refused(params):
    with pytest.raises(ConfigError, match="generated text"):
        LanguageModel(loaded_models.load(params)).generate_until([])


def test_torch_is_not_imported():
    """It may be installed; nothing here waits for it."""
    modules = "sparsecod_jax.evaluate.lm_eval_model, sparsecod_jax.evaluate.tasks"
    program = f"import sys; import {modules}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


@pytest.fixture(scope="module", params=[False, True], ids=["plain", "framed"])
def both(request, tmp_path_factory):
    """Ours and lm-eval's `hf` model, on the same weights and tokenizer."""
    for module in ("torch", "transformers", "accelerate"):
        pytest.importorskip(module, reason="needs the extra parity")
    from lm_eval.models.huggingface import HFLM

    folder = tmp_path_factory.mktemp("llama")
    rng = np.random.default_rng(3)
    llamas.save_tokenizer(
        folder, [_text(rng, 50) for _ in range(20)], framed=request.param
    )
    llamas.save_llama(folder, LONGEST)
    source = find_model(hf=str(folder))
    params, tokenizer = jax.device_get(load_model(source).params), source.tokenizer()
    hf_model: Any = HFLM  # its registration hides its type
    theirs = hf_model(
        pretrained=str(folder), dtype="float32", device="cpu", batch_size=3
    )
    assert theirs.max_length == LONGEST
    return params, tokenizer, theirs


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (2, 2, 1, 2)])
def test_agrees_with_the_hf_model(both, pairs, texts, sizes, monkeypatch):
    params, tokenizer, theirs = both
    model = LanguageModel(
        loaded_models.load(
            params, llamas.MODEL, sizes=sizes, max_seq_len=LONGEST, tokenizer=tokenizer
        )
    )
    requests = _requests("loglikelihood", pairs)
    expected = theirs.loglikelihood(requests, disable_tqdm=True)
    result = model.loglikelihood(requests, disable_tqdm=True)
    np.testing.assert_allclose(
        [a for a, _ in result], [b for b, _ in expected], atol=1e-3
    )
    assert [a for _, a in result] == [b for _, b in expected]
    assert model.truncated
    rolling = _requests("loglikelihood_rolling", [(text,) for text in texts])
    monkeypatch.setattr(
        theirs, "add_bos_token", False
    )  # a start that is itself scored after a start says nothing about the text
    expected = theirs.loglikelihood_rolling(rolling, disable_tqdm=True)
    np.testing.assert_allclose(
        model.loglikelihood_rolling(rolling, disable_tqdm=True), expected, atol=1e-3
    )
