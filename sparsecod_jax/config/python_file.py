"""How is a user's Python file run? Config files and studies are code; what goes wrong in one is said with its line."""

import os
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from sparsecod_jax.errors import ConfigError, SparsecodError

EXAMPLES = {"config file": "configs/smoke.py", "study": "configs/sweeps/depth.py:nano"}
MODULE = "sparsecod_file"  # its name while it runs


def call(spec: str, function: str, kind: str) -> Any:
    """What `function` of the file returns, given what stands behind the colon of `FILE.py[:SCALE]`.

    Args:
      kind: what such a file is called, one of EXAMPLES.

    Raises:
      ConfigError: there is no such file or function, or its code fails; the message has the line.
    """
    file, _, scale = spec.partition(":")
    if not os.path.isfile(file):
        raise ConfigError(
            f"there is no {kind} {file}: give a path such as {EXAMPLES[kind]}"
        )
    module = types.ModuleType(MODULE)
    module.__file__ = file
    sys.modules[MODULE] = module  # dataclasses look their module up
    try:
        exec(
            compile(Path(file).read_bytes(), file, "exec"), module.__dict__
        )  # no .pyc is left beside it
        if not callable(made := getattr(module, function, None)):
            raise ConfigError(
                f"{file} has no function {function}: define it, as {EXAMPLES[kind]} does"
            )
        return made(scale) if scale else made()
    except SparsecodError:
        raise
    except (
        Exception,
        SystemExit,
    ) as error:  # the code of others raises whatever it likes
        if isinstance(error, KeyError) and error.args == (scale,):
            raise ConfigError(
                f"{file} has no scale {scale!r}: give another, such as {file}:nano"
            ) from error
        raise ConfigError(
            f"{spec} can't be read ({_described(error, file)}): correct it"
        ) from error


def gist(error: BaseException) -> str:
    """What went wrong, in one line."""
    first_line = next(iter(str(error).strip().splitlines()), "")
    return f"{type(error).__name__}: {first_line}".removesuffix(": ")


def _described(error: BaseException, file: str) -> str:
    """The error, after the line of the file at which it came."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    lines = [
        frame.lineno
        for frame in traceback.extract_tb(error.__traceback__)
        if frame.filename == file
    ]
    return f"line {lines[-1]}: {gist(error)}" if lines else gist(error)
