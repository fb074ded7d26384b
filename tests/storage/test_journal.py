"""Lines of metrics are whole, or named; none is lost beside a damaged one."""

import random
import tracemalloc

import pytest
from etils import epath

from sparsecod_jax.storage import journal
from sparsecod_jax.storage.records import write_record
from sparsecod_jax.storage.rundir import RunDir

VALUES = [
    {"step": step, "loss": 1 / step, "norm": [0.5, None], "nonfinite": ["norm"]}
    for step in range(1, 7)
]
LINES = [journal.line(values).encode() for values in VALUES]


@pytest.fixture
def run(tmp_path):
    return RunDir(epath.Path(tmp_path))


def _begun(run, step):
    return b"".join(text for _, text in run.begin_metrics(step))


def test_lines_come_back_without_their_checksums():
    found = journal.read(b"".join(LINES), until=6)
    assert [values for values, _ in found.lines.values()] == VALUES
    assert b"".join(text for _, text in found.lines.values()) == b"".join(LINES)
    assert found.damaged == found.doubled == found.missing == []
    assert found.complaint == ""


def test_every_flipped_bit_is_named_and_costs_no_other_line():
    content = b"".join(LINES)
    for bit in range(8 * len(content)):
        flipped = bytearray(content)
        flipped[bit // 8] ^= 1 << (bit % 8)
        found = journal.read(bytes(flipped), until=6)
        assert found.complaint, f"bit {bit} passed in silence"
        kept = [values for values, _ in found.lines.values()]
        assert all(values in VALUES for values in kept), (
            f"bit {bit} changed a line in silence"
        )
        assert len(kept) >= 4  # of a line and its end, the next goes too


def test_what_is_wrong_is_reported_in_one_sentence(run, capsys):
    damaged = LINES[2].replace(b"0.3333", b"0.4333")
    run.metrics.write_bytes(
        LINES[0] + LINES[1] + damaged + LINES[4] + LINES[4] + LINES[5]
    )
    write_record(run.final, {"steps": 8})
    assert run.read_metrics() == [VALUES[0], VALUES[1], VALUES[4], VALUES[5]]
    assert capsys.readouterr().err == (
        f"{run.metrics}: 1 line is damaged (3), 1 line is doubled (5), "
        "4 steps are missing (3-4, 7-8): put back a copy, if you have one\n"
    )


def test_lines_of_earlier_versions_are_read_and_resumed(run, capsys):
    old = (
        b'{"step": 1, "loss": 2.5}\n{"step": 2, "loss": null, "nonfinite": ["loss"]}\n'
    )
    run.metrics.write_bytes(old + LINES[2])
    assert [line["step"] for line in run.read_metrics()] == [1, 2, 3]
    assert _begun(run, 3) == old + LINES[2]
    assert capsys.readouterr().err == ""
    without_checksum = b'{"step": 2, "loss": 2.5}\n'
    run.metrics.write_bytes(LINES[0] + without_checksum)
    assert run.read_metrics() == VALUES[:1]
    assert "1 line is damaged (2)" in capsys.readouterr().err


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"[1]",
        b"7",
        b'{"loss": 1}',
        b'{"step": "3"}',
        b'{"step": true}',
        b'{"step": -1}',
        b"[" * 10**5,
    ],
)
def test_what_is_no_line_is_damaged(line):
    assert journal.read(line + b"\n").damaged == [1]


def test_a_step_far_ahead_takes_no_memory():
    tracemalloc.start()
    found = journal.read(LINES[0] + journal.line({"step": 10**12}).encode())
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()
    assert found.complaint.startswith(
        "999,999,999,998 steps are missing (2-999999999999): "
    )


def test_a_resume_keeps_the_good_lines_and_the_file_as_it_was(run, capsys):
    content = bytearray(b"".join(LINES))
    content[len(LINES[0]) + 20] ^= random.choice([1, 2, 4])
    run.metrics.write_bytes(bytes(content))
    for copy in ("metrics.jsonl-0", "metrics.jsonl-1"):
        assert _begun(run, 4) == LINES[0] + LINES[2] + LINES[3]
        assert (run.path / copy).read_bytes() == content
        assert f"metrics.jsonl as it was is kept as {copy}" in capsys.readouterr().err


def test_lines_that_a_crash_left_beyond_the_checkpoint_go_without_a_warning(
    run, capsys
):
    run.metrics.write_bytes(b"".join(LINES) + b'{"step": 7, "lo')
    assert _begun(run, 4) == b"".join(LINES[:4])
    assert [path.name for path in run.path.iterdir()] == ["metrics.jsonl"]
    assert capsys.readouterr().err == ""
