"""Are README and docs in order? Their blocks, the commands that are only parsed, what they name.

`tests/test_docs.py` runs the other commands and the snippets.
"""

import re
import subprocess
import sys
from importlib import util

import pytest

from sparsecod_jax import errors
from sparsecod_jax.analysis.catalogue import CATALOGUE
from tests.docs import blocks, commands

PAGES = {page: blocks.read(page) for page in blocks.pages()}
REFERENCE = blocks.ROOT / "docs" / "reference"
NAMED_PATH = re.compile(r"`((?:benchmarks|docs|launch|sparsecod_jax|tests)/[\w./]+)`")
PROGRAMS = "cp|docker|gcloud|git|hf|kubectl|make|mkdir|pip|python|sparsecod|srun"


@pytest.mark.parametrize("page", PAGES)
def test_blocks_name_their_language(page):
    for block in PAGES[page]:
        assert block.language in (*blocks.TESTED, *blocks.SHOWN), f"line {block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_fenced_blocks(page):
    text = blocks.FENCE.sub("", (blocks.ROOT / page).read_text())
    assert not re.search(rf"^ {{4,}}({PROGRAMS}) ", text, re.MULTILINE)


def _parsed(page: str) -> list[blocks.Block]:
    shell = [block for block in PAGES[page] if block.language == "bash"]
    return [block for block in shell if block.mode == "parse"]


@pytest.mark.parametrize("page", filter(_parsed, PAGES))
def test_commands_that_need_a_cloud_or_hours_parse(page, tmp_path, monkeypatch):
    commands.enter_checkout(tmp_path, monkeypatch)
    for block in PAGES[page]:
        if block.mode == "file":
            (tmp_path / block.argument).write_text(block.text)
    for block in _parsed(page):
        for words in blocks.commands(block):
            commands.parse(words)


def test_exit_codes_of_the_reference_are_those_of_the_code():
    text = (REFERENCE / "exit_codes.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = errors.SparsecodError.__subclasses__()
    known = {kind.exit_code for kind in kinds} - {errors.SparsecodError.exit_code}
    known |= {errors.STUCK, errors.INTERRUPTED, errors.PIPE_CLOSED}
    assert codes == {0, *known, 143}


def test_every_score_is_in_the_reference():
    text = (REFERENCE / "scores.md").read_text()
    for name, score in CATALOGUE.items():
        assert f"\n## {name}\n" in text
        number = score.sequences or "all"
        assert re.search(rf"^\| `{name}` \|.*\| {number} \|$", text, re.MULTILINE)


@pytest.mark.parametrize("page", PAGES)
def test_paths_exist(page):
    text = (blocks.ROOT / page).read_text()
    for path in NAMED_PATH.findall(text):
        if "NAME" not in path:
            assert (blocks.ROOT / path).exists(), path


@pytest.mark.skipif(not util.find_spec("mkdocs"), reason="needs the extra docs")
def test_site_builds(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet"]
    subprocess.run([*command, f"--site-dir={tmp_path}"], cwd=blocks.ROOT, check=True)
