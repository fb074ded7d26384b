"""Whatever is wrong with a command line: one sentence, a documented exit code, nothing written, nothing lost."""

import time
from collections import Counter
from pathlib import Path

import pytest

from tests.support import wrong_inputs

pytestmark = pytest.mark.faults

SLOW = 10.0  # seconds after which an input is named


def test_wrong_inputs(tokens, tmp_path):
    root = tmp_path / "world"
    wrong_inputs.build(root)
    before, tried, failures = wrong_inputs.snapshot(root), Counter(), {}
    for words in wrong_inputs.command_lines(root, Path(tokens)):
        tried[" ".join(words[: 1 + (words[0] == "slurm")])] += 1
        began = time.monotonic()
        found = wrong_inputs.complaint(words)
        after = wrong_inputs.snapshot(root)
        if after != before:
            changed = {
                name
                for name in {*before, *after}
                if before.get(name) != after.get(name)
            }
            found = f"{found or 'refused'}, but changed {sorted(changed)[:3]}"
            before = after
        if (taken := time.monotonic() - began) > SLOW:
            print(f"{taken:.0f} s: {' '.join(words)[-150:]!r}", flush=True)
        if found:
            failures[" ".join(words)[-200:]] = found
    print(
        f"\nwrong inputs: {tried.total()} tried, {len(failures)} not refused as they should be; {dict(tried)}"
    )
    assert not failures, wrong_inputs.report(failures)
    assert tried.total() >= 300
