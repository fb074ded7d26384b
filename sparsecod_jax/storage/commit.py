"""Which commit is this code?

Commit: of this package's own checkout, or the one that a wheel was built from.
"""

import shutil
import subprocess
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]
DESCRIBE = ("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")


def commit() -> str | None:
    """The commit, with "-dirty" where files differ from it; None where nobody knows.

    A folder around the installed package may be another project's checkout: git is asked
    only where the package lies at the top level of a checkout.
    """
    checkout = PACKAGE.parent
    if (checkout / ".git").exists() and shutil.which("git"):
        command = ["git", "-C", str(checkout), *DESCRIBE]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode == 0:
            return done.stdout.strip()
    recorded = PACKAGE / "commit.txt"
    return recorded.read_text().strip() if recorded.exists() else None
