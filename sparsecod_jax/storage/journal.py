"""How are the lines of metrics.jsonl kept whole? One JSON object a step, which ends with a checksum.

A line that a crash cut off, so that it has no end, is left out without a word: it is written again
after the resume. Whatever else is damaged, doubled or missing is named. Earlier versions wrote no
checksums; their lines are taken as they are, where no newer one precedes.
"""

import dataclasses
import itertools
import json
import zlib
from typing import Any

NAME = "crc32"
TAIL = len(f', "{NAME}": "01234567"}}')


@dataclasses.dataclass(frozen=True)
class Journal:
    """What a file of lines holds, in the order of the steps."""

    lines: dict[
        int, tuple[dict[str, Any], bytes]
    ]  # by step: the values, and the line itself
    damaged: list[int]  # numbers of lines that can't be read
    doubled: list[
        int
    ]  # numbers of lines whose step an earlier line has; the last one counts
    missing: list[
        tuple[int, int]
    ]  # first and last of the steps that no line tells of, a pair for each gap

    @property
    def complaint(self) -> str:
        """One sentence on what is wrong; empty where nothing is."""
        wrong = {
            "damaged": ("line", _ranges(self.damaged)),
            "doubled": ("line", _ranges(self.doubled)),
            "missing": ("step", self.missing),
        }
        found = [
            _counted(kind, what, ranges)
            for what, (kind, ranges) in wrong.items()
            if ranges
        ]
        return f"{', '.join(found)}: put back a copy, if you have one" if found else ""


def line(values: dict[str, Any]) -> str:
    """One line of the file, for values that hold "step"."""
    body = json.dumps(values)[:-1]
    return f'{body}, "{NAME}": "{zlib.crc32(body.encode()):08x}"}}\n'


def read(content: bytes, until: int = 0) -> Journal:
    """Reads a file of lines, which should reach at least the step `until`."""
    lines, damaged, doubled = {}, [], []
    checked = False  # whether a line with a checksum came before
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        checked = checked or text.endswith(
            b'"}'
        )  # lines without a checksum end with a number or a list
        values = _parse(text, checked=checked)
        if values is None:
            damaged.append(number)
            continue
        if values["step"] in lines:
            doubled.append(number)
        lines[values["step"]] = (values, text + b"\n")
    steps = sorted(lines)
    last = max([until, *steps[-1:]])
    missing = [
        (before + 1, after - 1)
        for before, after in itertools.pairwise([0, *steps, last + 1])
        if after - before > 1
    ]
    return Journal({step: lines[step] for step in steps}, damaged, doubled, missing)


def _parse(text: bytes, *, checked: bool) -> dict[str, Any] | None:
    """The values of a line without its checksum; None if it is damaged."""
    if checked:
        body, tail = text[:-TAIL], text[-TAIL:]
        if tail != f', "{NAME}": "{zlib.crc32(body):08x}"}}'.encode():
            return None
        text = body + b"}"
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        return None
    has_step = (
        isinstance(values, dict)
        and type(values.get("step")) is int
        and values["step"] > 0
    )
    return values if has_step else None


def _ranges(numbers: list[int]) -> list[tuple[int, int]]:
    """First and last of numbers that follow one another."""
    ranges: list[tuple[int, int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1] = (ranges[-1][0], number)
        else:
            ranges.append((number, number))
    return ranges


def _counted(kind: str, what: str, ranges: list[tuple[int, int]]) -> str:
    """Such as "4 lines are damaged (3, 7-9)"; the first few."""
    count = sum(last - first + 1 for first, last in ranges)
    words = [
        str(first) if first == last else f"{first}-{last}" for first, last in ranges[:5]
    ]
    more = ", ..." if len(ranges) > 5 else ""
    be = f"{kind} is" if count == 1 else f"{kind}s are"
    return f"{count:,} {be} {what} ({', '.join(words)}{more})"
