"""How is a name or text that came from a file printed, and what is said once?"""

import functools
import os
import sys


def shown(value: object, longest: int = 300) -> str:
    """One line without control characters or bytes that are no UTF-8, cut in the middle where it is too long."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else str(value)
    if len(text) > longest:
        text = f"{text[: longest // 2]}...{text[-(longest // 2) :]}"
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


@functools.cache
def say_once(sentence: str) -> None:
    """Prints a sentence the first time; beside the output, which other programs may read."""
    print(sentence, file=sys.stderr, flush=True)
