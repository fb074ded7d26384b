"""The catalogue of layer scores."""

import subprocess
import sys

import pytest

from sparsecod_jax.analysis import scores
from sparsecod_jax.analysis.catalogue import CATALOGUE, IN_REPORTS, chosen
from sparsecod_jax.errors import ConfigError
from tests.support import process


def test_every_score_has_its_function_and_every_function_its_row():
    assert list(scores.SCORES) == list(CATALOGUE)


def test_names_are_chosen_by_commas():
    assert chosen("theory,profile") == ["theory", "profile"]
    assert chosen(None) == list(CATALOGUE)
    with pytest.raises(
        ConfigError, match=r"--scores names \[''\]: choose from profile,usefulness,"
    ):
        chosen("profile,")


def test_reports_have_each_score_and_those_with_a_headline_first():
    assert {id(score) for score in IN_REPORTS} == {
        id(score) for score in CATALOGUE.values()
    }
    has_headline = [bool(score.headlines) for score in IN_REPORTS]
    assert has_headline == sorted(has_headline, reverse=True)


def test_names_do_not_repeat():
    """Reports and cards find columns by their names."""
    for kind in ("headlines", "columns", "card"):
        rows = [row for score in IN_REPORTS for row in getattr(score, kind)]
        names = [row if kind == "headlines" else row.name for row in rows]
        assert len(set(names)) == len(names)


def test_the_catalogue_waits_for_no_library():
    program = "import sys; import sparsecod_jax.analysis.catalogue; print(*sys.modules)"
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, cwd=process.ROOT, capture_output=True, text=True, check=True
    )
    loaded = done.stdout.split()
    assert "sparsecod_jax.analysis.catalogue" in loaded
    assert not {"jax", "jaxlib", "numpy"} & set(loaded)
