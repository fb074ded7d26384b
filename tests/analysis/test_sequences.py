"""Which sequences are chosen, by which options."""

from typing import Any

import numpy as np
import pytest
from etils import epath

from sparsecod_jax.analysis.sequences import choose, draw
from sparsecod_jax.data.prepare import Request, prepare
from sparsecod_jax.data.store import read_manifest
from sparsecod_jax.errors import ConfigError
from sparsecod_jax.pretrained.exporting import export
from sparsecod_jax.pretrained.load import find_model

pytestmark = pytest.mark.parametrize("run", ["dense"], indirect=True)


def _choose(source, **options: Any):
    """Options that are not given have their defaults."""
    return choose(
        source,
        **dict.fromkeys(("tokens", "data", "sequences", "seq_len", "split")) | options,
        seed=0,
    )


def test_draws_different_windows_of_the_split(run, tokens):
    data = epath.Path(tokens), read_manifest(epath.Path(tokens), "command")
    drawn = draw(*data, "validation", 6, 16, seed=0)
    assert drawn.shape == (6, 16)
    assert len({row.tobytes() for row in drawn}) == 6
    np.testing.assert_array_equal(drawn, draw(*data, "validation", 6, 16, seed=0))
    assert not np.array_equal(drawn, draw(*data, "validation", 6, 16, seed=1))
    assert not np.array_equal(drawn, draw(*data, "train", 6, 16, seed=0))
    with pytest.raises(
        ConfigError,
        match=r"the validation split has \d+ windows of 16 tokens, not 9999:"
        " lower --sequences or --seq_len",
    ):
        draw(*data, "validation", 9999, 16, seed=0)


def test_named_data_stands_in_for_the_runs_own(run, tokens, tmp_path):
    own, _ = _choose(find_model(str(run.path)), sequences=3, seq_len=16)
    export(str(run.path), str(tmp_path / "hf"))
    folder = find_model(hf=str(tmp_path / "hf"))
    named, origin = _choose(folder, sequences=3, seq_len=16, data=str(tokens))
    np.testing.assert_array_equal(named, own)
    assert origin == {"split": "validation", "seed": 0}
    with pytest.raises(
        ConfigError,
        match="does not tell its data: name some with --data_dir, or give --token_file",
    ):
        _choose(folder)


def test_data_of_another_tokenizer_is_refused(run, corpus, tmp_path):
    prepare(
        Request(str(corpus), "bytes", validation_fraction=0.2), str(tmp_path / "bytes")
    )
    with pytest.raises(
        ConfigError,
        match="another tokenizer than the model's: make some with `sparsecod data",
    ):
        _choose(find_model(str(run.path)), data=str(tmp_path / "bytes"))


@pytest.mark.parametrize(
    ("option", "argument"),
    [("data_dir", "data"), ("sequences", "sequences"), ("split", "split")],
)
def test_a_file_leaves_nothing_to_be_chosen(run, option, argument):
    with pytest.raises(ConfigError, match=f"so --{option} can't: leave one out"):
        _choose(find_model(str(run.path)), tokens="file.npy", **{argument: 3})
