"""Does what README and docs tell a user to type work? Their commands and snippets are run.

CONTRIBUTING.md explains the comments that shorten a block; `tests/docs/test_pages.py` parses
the commands that need a cloud or hours.
"""

import json
import shutil

import pytest

from tests.docs import blocks, commands

MADE = ("data/sotu", "runs/smoke", "SmolLM2-135M")  # what pages take for granted


def _run_blocks(page: str) -> list[blocks.Block]:
    tested = [block for block in blocks.read(page) if block.language in blocks.TESTED]
    return [block for block in tested if block.mode != "parse"]


BLOCKS = {page: _run_blocks(page) for page in blocks.pages()}


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


@pytest.mark.parametrize("page", [page for page in BLOCKS if BLOCKS[page]])
def test_commands_and_snippets_run(page, tmp_path, monkeypatch, made):
    commands.enter_checkout(tmp_path, monkeypatch)
    _provide(page, made, tmp_path)
    namespace = {"__name__": page}
    for block in BLOCKS[page]:
        if block.mode == "file":
            (tmp_path / block.argument).write_text(block.text)
        elif block.language == "python":
            lines_before = "\n" * block.line  # a traceback has the line of the page
            exec(compile(lines_before + block.text, page, "exec"), namespace)
        else:
            for words in blocks.commands(block):
                commands.run(words, shorter=block.mode == "shorten")


def _provide(page, made, workplace):
    """Copies what the page's own commands don't make."""
    shell = [block for block in BLOCKS[page] if block.language == "bash"]
    own = [words for block in shell for words in blocks.commands(block)]
    for name in MADE:
        if not any(_makes(words, name) for words in own):
            shutil.copytree(made / name, workplace / name)


def _makes(words, name):
    data = {"data", f"--out={name}"}
    run = {"train", f"--workdir={name}"}
    return data <= {*words} or run <= {*words}


def test_every_metric_is_in_the_reference(made):
    text = (blocks.ROOT / "docs" / "reference" / "run_files.md").read_text()
    lines = (made / "runs/smoke/metrics.jsonl").read_text().splitlines()
    names = {name for line in lines for name in json.loads(line)}
    logged = [name for name in names if not name.startswith("evaluation/")]
    assert [name for name in sorted(logged) if f"`{name}`" not in text] == []
