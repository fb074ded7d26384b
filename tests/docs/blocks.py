"""Which commands and snippets do README and docs hold?

Fenced code blocks. An HTML comment on the line before one says how it is tested:

- `<!-- test: shorten -->`: its sparsecod commands get the words of `commands.SHORTER`;
- `<!-- test: parse -->`: its commands need a cloud or hours, and are only parsed; at the top
  of a page `<!-- test: parse all -->` holds for the whole page;
- `<!-- test: file NAME -->`: it is the content of that file.

A block without a comment is run as it stands.
"""

import dataclasses
import re
import shlex
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
TESTED = ("bash", "python")
SHOWN = ("text", "json", "yaml")  # for readers alone
ELSEWHERE = ("docs/tutorials/notebook.md",)  # by tests/test_api.py
RECORDS = ("docs/results/", "docs/log.md")  # of what was run once
MARKER = re.compile(r"<!-- test: (shorten|parse|file)(?: (\S+))? -->")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


@dataclasses.dataclass(frozen=True)
class Block:
    """A fenced block of a page."""

    line: int  # of its fence, from 1
    language: str
    mode: str  # run, shorten, parse or file
    argument: str  # of the mode
    text: str


def pages() -> list[str]:
    """Every page whose blocks are tested, by its path in the repository."""
    paths = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    paths += sorted((ROOT / "docs").rglob("*.md"))
    names = [path.relative_to(ROOT).as_posix() for path in paths]
    left_out = (*ELSEWHERE, *RECORDS)
    return [name for name in names if not name.startswith(left_out)]


def read(page: str) -> list[Block]:
    """The blocks of a page, in order."""
    text = (ROOT / page).read_text()
    parses_all = "<!-- test: parse all -->" in text
    blocks = []
    for fence in FENCE.finditer(text):
        before = text[: fence.start()].splitlines()
        marker = MARKER.fullmatch(before[-1]) if before else None
        mode, argument = "run", ""
        if parses_all:
            mode = "parse"
        if marker:
            mode, argument = marker[1], marker[2] or ""
        blocks.append(Block(len(before) + 1, fence[1], mode, argument, fence[2]))
    return blocks


def commands(block: Block) -> list[list[str]]:
    """The words of every command of a block of bash."""
    lines = block.text.replace("\\\n", " ").splitlines()
    found = []
    for line in lines:
        words = shlex.split(line, comments=True)
        while "&&" in words:
            end = words.index("&&")
            found.append(words[:end])
            words = words[end + 1 :]
        found.append(words)
    return [words for words in found if words]
