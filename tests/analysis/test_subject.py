"""Models and sequences as they are loaded."""

import dataclasses

import jax
import numpy as np
import pytest

from sparsecod_jax.analysis import network
from sparsecod_jax.analysis.subject import load, per_sequence
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.load import find_model
from tests.support import numpy_model, subjects, tiny_configs


def test_tokens_the_model_does_not_know_are_refused(run):
    with pytest.raises(ConfigError, match="reach from 0 to 304: use ids from 0 to 303"):
        load(find_model(str(run.path)), np.array([[0, 304]], np.int32))


@pytest.mark.parametrize("run", ["dense"], indirect=True)
def test_a_folder_says_how_many_tokens_it_takes(run, tmp_path):
    export(str(run.path), str(tmp_path / "hf"))
    assert load(
        find_model(hf=str(tmp_path / "hf")), np.zeros((2, 32), np.int32)
    ).tokens_NT.shape == (2, 32)
    with pytest.raises(ConfigError, match="takes at most 32 tokens, not 33"):
        load(find_model(hf=str(tmp_path / "hf")), np.zeros((2, 33), np.int32))


@pytest.mark.parametrize("mesh", [(1, 1, 1, 1), (2, 2, 1, 2)])
def test_each_sequence_is_measured_once_and_in_order(mesh, monkeypatch):
    """Seven sequences, four at a time where there are four devices, else two."""
    cfg = tiny_configs.MODEL
    tokens, params = subjects.tokens(cfg, sequences=7), tiny_configs.init(cfg)
    monkeypatch.setattr(
        "sparsecod_jax.analysis.subject.STATES_BYTES", 2 * 4 * 12 * 32 * 8 // mesh[0]
    )
    with subjects.analysed(cfg, tokens, params, mesh=mesh) as subject:
        sizes = [len(rows.tokens) for rows in subject.rows(tokens)]

        def measure(rows, states_LBTD):
            return np.array(
                [
                    network.tail_losses(
                        subject.net, subject.params, states_LBTD[1], 1, rows
                    )
                ]
            )

        result = per_sequence(subject, tokens, measure)
    assert sizes == (
        [4, 4] if len(jax.devices()[: int(np.prod(mesh))]) > 1 else [2, 2, 2, 2]
    )
    expected = numpy_model.losses(
        params, numpy_model.states(params, tokens, cfg)[-1], tokens, cfg
    )
    np.testing.assert_allclose(result, expected[None], rtol=1e-10)


def test_documents_are_kept_apart():
    cfg = dataclasses.replace(tiny_configs.MODEL, document_masking=True)
    tokens = subjects.tokens(cfg)
    tokens[:, 4] = 3
    other = tokens.copy()
    other[:, :4] = (tokens[:, :4] + 1) % cfg.vocab_size
    ends = []
    for each in (tokens, other):
        with subjects.analysed(cfg, each, tiny_configs.init(cfg), eos_id=3) as subject:
            rows = next(subject.rows(each))
            ends.append(
                np.asarray(
                    network.states(
                        subject.net, subject.params, rows.tokens, rows.segments
                    )[-1, :, 5:]
                )
            )
    np.testing.assert_array_equal(*ends)
