"""How is a name or text that came from a file printed, and what is printed only once?

Terminal text: files may hold anything, so control characters are escaped.
"""

import functools
import os
import sys


def shown(value: object, longest: int = 300) -> str:
    """One line without anything that a terminal obeys, cut in the middle if too long."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    text = text.strip().replace("\n", " ")
    if len(text) > longest:
        half = longest // 2
        text = f"{text[:half]} ... {text[-half:]}"
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


@functools.cache
def warn_once(sentence: str) -> None:
    """Prints a sentence the first time, to the standard error.

    The standard output is left to what other programs may read.
    """
    print(sentence, file=sys.stderr, flush=True)
