"""How are the lines of metrics.jsonl kept whole? One JSON object a step, which ends with a checksum of its line.

A line that a crash cut off, so that it has no end, is left out without a word: it is written again after the resume. Whatever else is
damaged, doubled or missing is named. Earlier versions wrote no checksums; their lines are taken as they are, where no newer one precedes.
"""

import dataclasses
import json
import zlib
from typing import Any

NAME = "crc32"
TAIL = len(f', "{NAME}": "01234567"}}')


@dataclasses.dataclass(frozen=True)
class Journal:
    """What a file of lines holds, in the order of the steps."""

    lines: dict[int, tuple[dict[str, Any], bytes]]  # by step: the values, and the line as it stands in the file
    damaged: list[int]  # numbers of lines that can't be read
    doubled: list[int]  # numbers of lines whose step an earlier line has; the last one counts
    missing: list[int]  # steps that no line tells of

    @property
    def complaint(self) -> str:
        """One sentence on what is wrong; empty where nothing is."""
        wrong = {"damaged": (self.damaged, "line"), "doubled": (self.doubled, "line"), "missing": (self.missing, "step")}
        found = [f"{len(numbers)} {what} ({kind} {_ranges(numbers)})" for what, (numbers, kind) in wrong.items() if numbers]
        return f"of its lines are {', '.join(found)}: put back a copy, if you have one" if found else ""


def line(values: dict[str, Any]) -> str:
    """One line of the file, for values that hold "step"."""
    body = json.dumps(values)[:-1]
    return f'{body}, "{NAME}": "{zlib.crc32(body.encode()):08x}"}}\n'


def read(content: bytes, until: int = 0) -> Journal:
    """Reads a file of lines, which should reach at least the step `until`."""
    lines, damaged, doubled = {}, [], []
    checked = False  # whether a line with a checksum came before
    for number, text in enumerate(content.split(b"\n")[:-1], start=1):
        checked = checked or text.endswith(b'"}')  # lines without a checksum end with a number or a list
        values = _parse(text, checked=checked)
        if values is None:
            damaged.append(number)
            continue
        if values["step"] in lines:
            doubled.append(number)
        lines[values["step"]] = (values, text + b"\n")
    missing = sorted({*range(1, max([until, *lines]) + 1)} - lines.keys())
    return Journal({step: lines[step] for step in sorted(lines)}, damaged, doubled, missing)


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
    has_step = isinstance(values, dict) and type(values.get("step")) is int and values["step"] > 0
    return values if has_step else None


def _ranges(numbers: list[int]) -> str:
    """Such as 3, 7-9; the first few."""
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    words = [str(first) if first == last else f"{first}-{last}" for first, last in ranges]
    return ", ".join(words[:5]) + (", ..." if len(words) > 5 else "")
