"""Another process that owns a run directory."""

import contextlib
import subprocess
import sys
from collections.abc import Iterator

from etils import epath

HOLD = """
import sys, time
from etils import epath
from sparsecod_jax.storage.attempts import claim
from sparsecod_jax.storage.rundir import RunDir

with claim(RunDir(epath.Path(sys.argv[1]))) as attempt:
    print("holding", attempt.number, flush=True)
    time.sleep(600)
"""


@contextlib.contextmanager
def holding(path: epath.Path) -> Iterator[subprocess.Popen]:
    """Starts a process that claims the run at `path`, and kills it in the end."""
    command = [sys.executable, "-c", HOLD, str(path)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout
    assert process.stdout.readline() == "holding 1\n"
    yield process
    process.kill()
    process.wait()
