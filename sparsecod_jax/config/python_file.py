"""How is a user's Python file found and run?

Config files and study files: both are code. What goes wrong in one is said with its line.
Those of this package are known by name, so that an installed package needs no checkout.
"""

import dataclasses
import os
import re
import sys
import traceback
import types
from pathlib import Path
from typing import Any

from sparsecod_jax.errors import ConfigError, SparsecodError

MODULE = "sparsecod_file"  # the name of such a file while it runs
# Where such files find what earlier versions had elsewhere.
MOVED = {
    "scales": "sparsecod_jax.config.scales",
    "config_file": "sparsecod_jax.config.load",
    "sweep": "sparsecod_jax.study, whose house.py is now claims.py",
}
PACKAGE = Path(__file__).resolve().parents[1]


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of Python file that users write."""

    name: str
    function: str  # which the file defines
    folder: str  # of those that are installed with the package, within configs/
    example: str


CONFIG = Kind("config file", "get_config", "", "dense_1b:nano or configs/smoke.py")
STUDY = Kind(
    "study", "get_study", "sweeps", "depth:nano or configs/sweeps/depth.py:nano"
)


def configs_folder() -> Path:
    """The folder of the package's own config files: within a wheel, beside it in a checkout."""
    installed = PACKAGE / "configs"
    return installed if installed.is_dir() else PACKAGE.parent / "configs"


def call(spec: str, kind: Kind) -> Any:
    """What the function of a file returns, given the scale.

    Args:
      spec: FILE[:SCALE], where FILE is a path, or the name of a file of the package.

    Raises:
      ConfigError: there is no such file or function, or its code fails; the message has the
        line.
    """
    name, _, scale = spec.partition(":")
    file = _locate(name, kind)
    module = types.ModuleType(MODULE)
    module.__file__ = file
    sys.modules[MODULE] = module  # dataclasses look their module up
    try:
        code = compile(Path(file).read_bytes(), file, "exec")
        exec(code, module.__dict__)  # an import would leave a .pyc beside the file
        return _made(module, kind, file, scale)
    except SparsecodError:
        raise
    except (
        Exception,
        SystemExit,
    ) as error:  # the code of others raises whatever it likes
        if isinstance(error, KeyError) and error.args == (scale,):
            message = (
                f"{name} has no scale {scale!r}: give another, such as {name}:nano"
            )
            raise ConfigError(message) from error
        where = _described(error, file)
        raise ConfigError(f"{spec} can't be read ({where}): correct it") from error


def _locate(name: str, kind: Kind) -> str:
    """The path of a file that is there, or of the package's own file of that name.

    `depth`, `depth.py` and `configs/sweeps/depth.py` all name the package's own.
    """
    if os.path.isfile(name):
        return name
    folder = Path("configs", kind.folder)
    path = Path(name)
    own = path.parent in (Path(), folder) and path.suffix in ("", ".py")
    installed = configs_folder() / kind.folder / f"{path.stem}.py"
    if own and path.stem and installed.is_file():
        return str(installed)
    example = f"give a name or path such as {kind.example}"
    raise ConfigError(f"there is no {kind.name} {name}: {example}")


def _made(module: types.ModuleType, kind: Kind, file: str, scale: str) -> Any:
    function = getattr(module, kind.function, None)
    if not callable(function):
        message = (
            f"{file} has no function {kind.function}: define it, as {kind.example} does"
        )
        raise ConfigError(message)
    if scale:
        return function(scale)
    return function()


def gist(error: BaseException) -> str:
    """What went wrong, in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0]}".removesuffix(": ")


def _described(error: BaseException, file: str) -> str:
    """The error, after the line of the file at which it was raised."""
    if isinstance(error, SyntaxError):
        return f"line {error.lineno}: {type(error).__name__}: {error.msg}"
    what = gist(error) + _moved(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    if lines:
        return f"line {lines[-1]}: {what}"
    return what


def _moved(error: BaseException) -> str:
    """Where a module of an earlier version went, if the error is that it is missing."""
    if not isinstance(error, ImportError):
        return ""
    for missing in re.findall(r"'(?:sparsecod_jax\.)?(\w+)", str(error)):
        if missing in MOVED:
            return f": it is now {MOVED[missing]}"
    return ""
