"""How are the lines of metrics.jsonl kept whole?

Metric lines: one JSON object per step, which ends with a checksum. A line that a crash
cut off has no end; it is left out without a warning, as it is written again after the
resume. Whatever else is damaged, duplicated or missing is named. Earlier versions wrote
no checksums; their lines are taken as they are, where no newer one precedes.
"""

import dataclasses
import json
import zlib
from typing import Any

NAME = "crc32"
TAIL_LENGTH = len(f', "{NAME}": "01234567"}}')
EXAMPLES = 5  # that a complaint names at most


@dataclasses.dataclass(frozen=True)
class Journal:
    """What a file of lines holds, in the order of the steps."""

    # By step: the values, and the line itself.
    lines: dict[int, tuple[dict[str, Any], bytes]]

    # Numbers of lines that can't be read.
    damaged: list[int]

    # Numbers of lines whose step an earlier line has; the last one counts.
    doubled: list[int]

    # First and last step of each gap, for which there are no lines.
    missing: list[tuple[int, int]]

    @property
    def complaint(self) -> str:
        """One sentence on what is wrong; empty where nothing is."""
        problems = []
        if self.damaged:
            problems.append(_counted("line", "damaged", _ranges(self.damaged)))
        if self.doubled:
            problems.append(_counted("line", "doubled", _ranges(self.doubled)))
        if self.missing:
            problems.append(_counted("step", "missing", self.missing))
        if not problems:
            return ""
        return f"{', '.join(problems)}: put back a copy, if you have one"


def line(values: dict[str, Any]) -> str:
    """One line of the file, for values that hold "step"."""
    body = json.dumps(values).removesuffix("}")
    tail = _tail(body.encode()).decode()
    return f"{body}{tail}\n"


def _tail(body: bytes) -> bytes:
    """The end of a line: the checksum of all that precedes it."""
    checksum = zlib.crc32(body)
    return f', "{NAME}": "{checksum:08x}"}}'.encode()


def read(content: bytes, until: int = 0) -> Journal:
    """Reads a file of lines, which should reach at least the step `until`."""
    lines, damaged, doubled = {}, [], []
    checked = False  # whether a line with a checksum came before
    whole_lines = content.split(b"\n")[:-1]
    for number, text in enumerate(whole_lines, start=1):
        # Lines without a checksum end with a number or a list.
        checked = checked or text.endswith(b'"}')
        values = _parse(text, checked=checked)
        if values is None:
            damaged.append(number)
            continue
        step = values["step"]
        if step in lines:
            doubled.append(number)
        lines[step] = (values, text + b"\n")
    by_step = dict(sorted(lines.items()))
    return Journal(by_step, damaged, doubled, _gaps(list(by_step), until))


def _gaps(steps: list[int], until: int) -> list[tuple[int, int]]:
    """First and last of each run of numbers that `steps` lacks.

    The steps, in order, should be all numbers from 1 to at least `until`.
    """
    gaps = []
    expected = 1
    for step in steps:
        if step > expected:
            gaps.append((expected, step - 1))
        expected = step + 1
    if expected <= until:
        gaps.append((expected, until))
    return gaps


def _parse(text: bytes, *, checked: bool) -> dict[str, Any] | None:
    """The values of a line without its checksum; None if it is damaged."""
    if checked:
        body = text[:-TAIL_LENGTH]
        if text != body + _tail(body):
            return None
        text = body + b"}"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    if not isinstance(values, dict):
        return None
    step = values.get("step")
    # A bool is an int to isinstance.
    if type(step) is not int or step <= 0:
        return None
    return values


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of each run of consecutive numbers."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        first = number
        if ranges and ranges[-1][1] == number - 1:
            first, _ = ranges.pop()
        ranges.append((first, number))
    return ranges


def _counted(kind: str, problem: str, ranges: list[tuple[int, int]]) -> str:
    """Such as "4 lines are damaged (3, 7-9)"; names the first few."""
    count = 0
    examples = []
    for first, last in ranges:
        count += last - first + 1
        examples.append(str(first) if first == last else f"{first}-{last}")
    if len(examples) > EXAMPLES:
        examples[EXAMPLES:] = ["..."]
    subject = f"{kind} is" if count == 1 else f"{kind}s are"
    return f"{count:,} {subject} {problem} ({', '.join(examples)})"
