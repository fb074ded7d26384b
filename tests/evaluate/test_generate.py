"""Greedy text against a loop of whole forward passes; drawing; ends."""

import numpy as np
import pytest

from sparsecod_jax.errors import ConfigError
from sparsecod_jax.evaluate.generate import generate
from tests.support import loaded_models, numpy_model, tiny_configs

PROMPT, LETTERS = "of the river", loaded_models.Letters.vocab_size


@pytest.fixture(scope="module")
def params():
    return loaded_models.sharpened(tiny_configs.MODEL)


@pytest.fixture(scope="module")
def model(params):
    return loaded_models.load(params)


def _greedy(params, prompt: list[int], tokens: int) -> list[int]:
    ids = list(prompt)
    for _ in range(tokens):
        logits, _ = numpy_model.forward(params, np.array([ids]), tiny_configs.MODEL)
        ids.append(int(logits[0, -1, :LETTERS].argmax()))
    return ids[len(prompt) :]


def _ids(text: str) -> list[int]:
    return loaded_models.Letters().ids(text)


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1), (1, 2, 1, 2)])
def test_greedy_is_the_argmax_of_whole_forward_passes(params, sizes):
    written = generate(loaded_models.load(params, sizes=sizes), PROMPT, 10)
    assert _ids(written) == _greedy(params, _ids(PROMPT), 10)
    assert len(set(written)) > 2


def test_an_empty_prompt_begins_a_document(params, model):
    assert _ids(generate(model, "", 5)) == _greedy(
        params, [loaded_models.Letters.start_id], 5
    )


def test_a_seed_repeats_its_text(model):
    texts = [
        generate(model, PROMPT, 20, temperature=1.0, seed=seed) for seed in (0, 0, 1)
    ]
    assert texts[0] == texts[1] != texts[2]


def test_a_low_temperature_is_greedy(model):
    assert generate(model, PROMPT, 10, temperature=1e-4) == generate(model, PROMPT, 10)


def test_draws_by_the_probabilities(params, model):
    """The first id of 300 texts, at a temperature of 2."""
    drawn = np.array(
        [
            _ids(generate(model, PROMPT, 1, temperature=2.0, seed=seed))[0]
            for seed in range(300)
        ]
    )
    logits = (
        numpy_model.forward(params, np.array([_ids(PROMPT)]), tiny_configs.MODEL)[0][
            0, -1, :LETTERS
        ]
        / 2
    )
    probabilities = np.exp(logits) / np.exp(logits).sum()
    best = probabilities.argsort()[-10:]
    expected = probabilities[best].sum()
    assert np.isin(drawn, best).mean() == pytest.approx(
        expected, abs=3.5 * (expected * (1 - expected) / 300) ** 0.5
    )


def test_stops_before_the_end_of_document(params):
    """The end is whatever greedy text has at its fifth place."""
    whole = _greedy(params, _ids(PROMPT), 10)
    tokenizer = loaded_models.Letters()
    tokenizer.eos_id = whole[4]
    assert (
        _ids(generate(loaded_models.load(params, tokenizer=tokenizer), PROMPT, 10))
        == whole[: whole.index(whole[4])]
    )


def test_fills_the_model_and_no_more(model):
    room = model.source.max_seq_len - len(PROMPT)
    assert len(generate(model, PROMPT, room)) <= room
    with pytest.raises(ConfigError, match="exceed the model's 64: shorten"):
        generate(model, PROMPT, room + 1)


@pytest.mark.parametrize(
    "options",
    [{"tokens": 0}, {"tokens": 1, "temperature": -1.0}, {"tokens": 1, "seed": -1}],
)
def test_refuses_numbers_without_meaning(model, options):
    with pytest.raises(ConfigError, match="raise it"):
        generate(model, PROMPT, **options)
