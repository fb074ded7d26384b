"""Does what README and docs tell a user to type work? Every command and snippet is run, or parsed.

CONTRIBUTING.md explains the comments that shorten a block.
"""

import json
import re
import shutil
import subprocess
import sys
from importlib import util

import pytest

from sparsecod_jax import errors
from sparsecod_jax.analysis.catalogue import CATALOGUE
from tests.docs import blocks, commands

PAGES = {page: blocks.read(page) for page in blocks.pages()}
MADE = ("data/sotu", "runs/smoke", "SmolLM2-135M")  # what pages take for granted
REFERENCE = blocks.ROOT / "docs" / "reference"
NAMED_PATH = re.compile(r"`((?:benchmarks|docs|launch|sparsecod_jax|tests)/[\w./]+)`")
PROGRAMS = "cp|docker|gcloud|git|hf|kubectl|make|mkdir|pip|python|sparsecod|srun"


@pytest.fixture(scope="session")
def made(tmp_path_factory):
    """A folder with tiny data, a trained run, and a Hugging Face model folder."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for words in (
            "data --source=sotu --tokenizer=bpe --vocab_size=2048 --out=data/sotu",
            "train --config=smoke --workdir=runs/smoke",
            "export --workdir=runs/smoke --out=SmolLM2-135M",
        ):
            commands.run(["sparsecod", *words.split()], shorter=True)
    return folder


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """The current folder: a new one that looks like a checkout."""
    for name in ("configs", "launch"):
        (tmp_path / name).symlink_to(blocks.ROOT / name)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", PAGES)
def test_blocks_name_their_language(page):
    for block in PAGES[page]:
        assert block.language in (*blocks.TESTED, *blocks.SHOWN), f"line {block.line}"


@pytest.mark.parametrize("page", PAGES)
def test_commands_stand_in_fenced_blocks(page):
    text = blocks.FENCE.sub("", (blocks.ROOT / page).read_text())
    assert not re.search(rf"^ {{4,}}({PROGRAMS}) ", text, re.MULTILINE)


def _parsed(page: str) -> list[blocks.Block]:
    shell = [block for block in PAGES[page] if block.language in blocks.SHELL]
    return [block for block in shell if block.mode == "parse"]


@pytest.mark.parametrize("page", filter(_parsed, PAGES))
def test_commands_that_need_a_cloud_or_hours_parse(page, workplace):
    for block in PAGES[page]:
        if block.mode == "file":
            (workplace / block.argument).write_text(block.text)
    for block in _parsed(page):
        for words in blocks.commands(block):
            commands.parse(words)


def _run(page: str) -> list[blocks.Block]:
    tested = [block for block in PAGES[page] if block.language in blocks.TESTED]
    return [block for block in tested if block.mode != "parse"]


@pytest.mark.parametrize("page", filter(_run, PAGES))
def test_commands_and_snippets_run(page, workplace, made):
    _provide(page, made, workplace)
    namespace = {"__name__": page}
    for block in _run(page):
        if block.mode == "file":
            (workplace / block.argument).write_text(block.text)
        elif block.language == "python":
            _run_python(block, page, namespace)
        else:
            for words in blocks.commands(block):
                commands.run(words, shorter=block.mode == "shorten")


def _provide(page, made, workplace):
    """Copies what the page's own commands don't make."""
    shell = [block for block in _run(page) if block.language in blocks.SHELL]
    own = [words for block in shell for words in blocks.commands(block)]
    for name in MADE:
        if not any(_makes(words, name) for words in own):
            shutil.copytree(made / name, workplace / name)


def _makes(words, name):
    data = {"data", f"--out={name}"}
    run = {"train", f"--workdir={name}"}
    return data <= {*words} or run <= {*words}


def _run_python(block, page, namespace):
    text = block.text
    if block.mode == "shorten":
        text = commands.shorter_python(text)
    lines_before = "\n" * block.line  # so that a traceback has the line of the page
    exec(compile(lines_before + text, page, "exec"), namespace)


def test_exit_codes_of_the_reference_are_those_of_the_code():
    text = (REFERENCE / "exit_codes.md").read_text()
    codes = {int(code) for code in re.findall(r"^\| (\d+) \|", text, re.MULTILINE)}
    kinds = errors.SparsecodError.__subclasses__()
    known = {kind.exit_code for kind in kinds} - {errors.SparsecodError.exit_code}
    known |= {errors.STUCK, errors.INTERRUPTED, errors.PIPE_CLOSED}
    assert codes == {0, *known, 143}


def test_every_metric_is_in_the_reference(made):
    text = (REFERENCE / "run_files.md").read_text()
    lines = (made / "runs/smoke/metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    logged = [name for name in names if not name.startswith("evaluation/")]
    assert [name for name in sorted(logged) if f"`{name}`" not in text] == []


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
