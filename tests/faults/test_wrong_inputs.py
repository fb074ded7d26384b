"""Wrong command lines: one sentence, a documented exit code, nothing written or lost."""

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
    before = wrong_inputs.snapshot(root)
    tried = Counter()
    failures = {}
    for words in wrong_inputs.command_lines(root, Path(tokens)):
        # `slurm` has subcommands of its own.
        subcommand = words[:2] if words[0] == "slurm" else words[:1]
        tried[" ".join(subcommand)] += 1
        began = time.monotonic()
        failure = wrong_inputs.complaint(words)
        after = wrong_inputs.snapshot(root)
        if after != before:
            names = sorted({*before, *after})
            changed = [name for name in names if before.get(name) != after.get(name)]
            failure = f"{failure or 'refused'}, but changed {changed[:3]}"
            before = after
        seconds = time.monotonic() - began
        line = " ".join(words)
        if seconds > SLOW:
            print(f"{seconds:.0f} s: {line[-150:]!r}", flush=True)
        if failure:
            failures[line[-200:]] = failure
    print(
        f"\nwrong inputs: {tried.total()} tried, {len(failures)} not refused as they"
        f" should be; {dict(tried)}"
    )
    assert not failures, wrong_inputs.report(failures)
    assert tried.total() >= 300
