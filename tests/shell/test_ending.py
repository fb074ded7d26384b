"""However a program ends, it says so in one sentence, with a documented exit code."""

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from sparsecod_jax.errors import ConfigError, Diverged, Fenced, Preempted, UsageError
from sparsecod_jax.shell import ending
from tests.support import process


def _end(error, capsys):
    """The exit code and the sentence of a program that raises `error`."""

    def fail():
        raise error

    code = ending.exit_code_of("program", fail)
    written = capsys.readouterr()
    assert written.out == ""
    assert written.err.count("\n") == 1
    return code, written.err.strip()


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (UsageError("x"), 2),
        (Diverged("x"), 70),
        (Preempted("x"), 75),
        (Fenced("x"), 76),
        (ConfigError("x"), 78),
    ],
    ids=lambda value: type(value).__name__,
)
def test_errors_of_ours(error, code, capsys):
    assert _end(error, capsys) == (code, "program: x")


@pytest.mark.parametrize(
    ("number", "code", "words"),
    [
        (errno.ENOSPC, 1, "/a/b can't be used (No space left on device): make room"),
        (
            errno.EROFS,
            78,
            "/a/b can't be used (Read-only file system): correct the path",
        ),
        (errno.EACCES, 78, "/a/b can't be used (Permission denied): "),
        (errno.ENOTDIR, 78, "/a/b can't be used (Not a directory): "),
        (errno.EISDIR, 78, "/a/b can't be used (Is a directory): "),
    ],
)
def test_what_the_system_says_is_no_bug(number, code, words, capsys):
    found, sentence = _end(OSError(number, os.strerror(number), "/a/b"), capsys)
    assert found == code
    assert sentence.startswith(f"program: {words}")


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("RESOURCE_EXHAUSTED: out of 80 GiB\nby much")]
)
def test_too_little_memory_is_no_bug(error, capsys):
    code, sentence = _end(error, capsys)
    assert code == 1
    assert sentence.startswith("program: there is too little memory (")


def test_a_bug_says_where_its_trace_is(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code, sentence = _end(ZeroDivisionError("by \x1b[31mzero\nand more"), capsys)
    assert code == 1
    (trace,) = tmp_path.iterdir()
    assert sentence == (
        r"program: ZeroDivisionError: by \x1b[31mzero; this is a bug of sparsecod_jax: "
        f"please report it with its trace, {trace}"
    )
    assert "in fail\n    raise error" in trace.read_text()


def test_a_bug_without_a_place_for_its_trace(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "nowhere"))
    code, sentence = _end(ZeroDivisionError("by zero"), capsys)
    assert code == 1
    assert "its trace could not be written: " in sentence
    assert "raise error" in sentence


def test_an_interruption(capsys):
    assert _end(KeyboardInterrupt(), capsys) == (130, "program: interrupted")


@pytest.mark.parametrize(
    "text", ["\x1b]0;owned\x07", "a\rb", "‮gnp.exe", "\ud800", "a\nb", "\x00", "‎"]
)
def test_names_of_others_do_not_reach_the_terminal(text, capsys):
    _, sentence = _end(ConfigError(f"{text} can't be read"), capsys)
    assert sentence.isprintable()


def test_a_long_message_is_cut_in_the_middle(capsys):
    _, sentence = _end(ConfigError("begin " + "x" * 10**6 + ": the end"), capsys)
    assert sentence.startswith("program: begin ")
    assert sentence.endswith(": the end")
    assert len(sentence) < 2100


PRINTING = """
import sys
from sparsecod_jax.shell.ending import exit_code_of
sys.exit(exit_code_of("x", lambda: print({text})))
"""


def test_the_reader_of_the_output_may_leave(tmp_path):
    """As `| head` does, and quietly; a broken pipe of our own is reported."""
    script = PRINTING.format(text="'word ' * 10**6")
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-c", script],
        cwd=process.ROOT,
        stdout=writing,
        stderr=subprocess.PIPE,
        text=True,
        timeout=60,
        check=False,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (141, "")


def test_streams_that_are_closed_are_no_bug():
    script = PRINTING.format(text="'word'")
    for closed in (">&-", "2>&-", ">&- 2>&-"):
        command = ["sh", "-c", f'"$0" -c "$1" {closed}', sys.executable, script]
        done = subprocess.run(
            command,
            cwd=process.ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert (done.returncode, done.stderr) == (0, "")


def test_a_broken_pipe_of_our_own_is_reported(capsys):
    code, sentence = _end(BrokenPipeError(errno.EPIPE, "Broken pipe"), capsys)
    assert code == 1
    assert "BrokenPipeError" in sentence
    Path(sentence.rpartition(" ")[2]).unlink()
