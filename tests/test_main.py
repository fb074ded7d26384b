"""`python -m sparsecod_jax` imports nothing that happens to lie in the working folder."""

import os
import subprocess
import sys

from tests.support import process


def test_a_module_of_the_working_folder_is_not_imported(tmp_path):
    for name in ("random", "numpy", "queue"):
        (tmp_path / f"{name}.py").write_text(
            "raise SystemExit('the working folder was imported')"
        )
    command = [
        sys.executable,
        "-m",
        "sparsecod_jax",
        "train",
        "--config=nowhere.py",
        "--workdir=run",
    ]
    environment = os.environ | {"PYTHONPATH": str(process.ROOT)}
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 78
    assert "nowhere.py" in done.stderr
