"""How is a name or text that came from a file printed, and what is said once?"""

import functools
import os
import sys


def shown(value: object, longest: int = 300) -> str:
    """One line without anything that a terminal obeys, cut in the middle where it is too long."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    text = text.strip().replace("\n", " ")
    if len(text) > longest:
        text = f"{text[: longest // 2]} ... {text[-(longest // 2) :]}"
    return "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode()


@functools.cache
def warn_once(sentence: str) -> None:
    """Prints a sentence the first time; beside the output, which other programs may read."""
    print(sentence, file=sys.stderr, flush=True)
