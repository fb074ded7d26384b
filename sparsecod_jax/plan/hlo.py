"""What does a compiled program send between devices? Read from its text, loops counted as often as they run."""

import dataclasses
import math
import re

KINDS = (
    "all-gather",
    "all-reduce",
    "reduce-scatter",
    "all-to-all",
    "ragged-all-to-all",
    "collective-permute",
    "collective-broadcast",
    "send",  # between the slices of a TPU
)

_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*)$")
_OPERATION = re.compile(r"(?<=[\s)}\]])([a-z][\w\-]*)\(([^)]*)\)")
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
_COMMENT = re.compile(r"/\*.*?\*/")  # numbers the operands of long lists


@dataclasses.dataclass
class Traffic:
    """One kind of collective in one execution of a program, on one device."""

    count: int = 0
    bytes: int = 0  # of operands or results, whichever are more; a device sends and receives at most that much


def collectives(text: str) -> dict[str, Traffic]:
    """Traffic by kind of collective, from the text of a compiled program (`compiled.as_text()`) for any platform.

    Every branch of a condition counts, and a loop counts once if its text does not tell how often it runs.
    """
    computations, entry = _computations(text)
    runs = _runs(computations, entry)
    found: dict[str, Traffic] = {}
    for name, instructions in computations.items():
        if not runs.get(name) or _repeats(name, instructions):
            continue
        types = {instruction: _split(rest)[0] for instruction, rest in instructions}
        for _, rest in instructions:
            result, operation, _ = _split(rest)
            kind = operation.removesuffix("-start")
            if kind not in KINDS:
                continue
            sent = sum(_bytes(types[operand]) for operand in _operands(rest))
            both = operation == "send" or (
                operation.endswith("-start") and result.startswith("(")
            )  # the result repeats the operands
            received = _bytes(result) - sent if both else _bytes(result)
            traffic = found.setdefault(
                "reduce-scatter" if name.startswith("all-reduce-scatter") else kind,
                Traffic(),
            )
            traffic.count += runs[name]
            traffic.bytes += runs[name] * max(sent, received)
    return found


def _repeats(name: str, instructions: list[tuple[str, str]]) -> bool:
    """Whether a computation only goes on with a collective that another one began: the compiler for TPU spreads some over several."""
    return name.startswith("async_collective_fusion") or any(
        "AsyncCollectiveDone" in rest for _, rest in instructions
    )


def _computations(text: str) -> tuple[dict[str, list[tuple[str, str]]], str]:
    """The instructions of each computation, as name and the rest of the line; and the name of the first to run."""
    computations, entry = {}, ""
    current: list[tuple[str, str]] = []
    for line in _COMMENT.sub("", text).splitlines():
        if header := _COMPUTATION.match(line):
            current = computations[header[2]] = []
            entry = header[2] if header[1] else entry
        elif instruction := _INSTRUCTION.match(line):
            current.append((instruction[2], instruction[3]))
    return computations, entry


def _split(rest: str) -> tuple[str, str, str]:
    """Result type, operation and operands of an instruction."""
    operation = _OPERATION.search(rest)
    return (
        (rest[: operation.start()].strip(), operation[1], operation[2])
        if operation
        else (rest, "", "")
    )


def _bytes(type_text: str) -> int:
    total = 0
    for dtype, shape in _ARRAY.findall(type_text):
        bits = 8 if dtype == "pred" else int(_BITS.search(dtype)[0])  # pyright: ignore[reportOptionalSubscript]
        total += math.prod(int(size) for size in shape.split(",") if size) * bits // 8
    return total


def _runs(computations, entry: str) -> dict[str, int]:
    """How often each computation runs when the program runs once."""
    runs: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        runs[name] = runs.get(name, 0) + times
        instructions = dict(computations.get(name, ()))
        for rest in instructions.values():
            trips = _trips(rest, instructions, computations) if " while(" in rest else 1
            for one, several in _CALLED.findall(rest):
                for called in [one] if one else several.split(","):
                    visit(called.strip().lstrip("%"), times * trips)

    visit(entry, 1)
    return runs


def _trips(loop: str, around: dict[str, str], computations) -> int:
    """Iterations of a loop: as the compiler says, or those from the counter's start to the constant that it is compared with."""
    if known := re.search(r'known_trip_count":\{"n":"(\d+)"', loop):
        return int(known[1])
    condition = re.search(r"condition=%?([\w.\-]+)", loop)
    text = (
        "\n".join(rest for _, rest in computations[condition[1]]) if condition else ""
    )
    limits, counters = (
        re.findall(r" constant\((\d+)\)", text),
        re.findall(r" get-tuple-element\(.*index=(\d+)", text),
    )
    if len(limits) != 1 or len(counters) != 1:
        return 1
    initial = around.get(_operands(loop)[0], "")
    counter = _operands(initial)[int(counters[0])] if " tuple(" in initial else ""
    return int(limits[0]) - _constant(counter, around)


def _constant(name: str, around: dict[str, str]) -> int:
    """The value of a constant or of its copies; a loop whose first iterations were peeled off does not start at 0."""
    rest = around.get(name, "")
    if found := re.search(r" constant\((\d+)\)", rest):
        return int(found[1])
    return _constant(_operands(rest)[0], around) if " copy(" in rest else 0


def _operands(rest: str) -> list[str]:
    """The names of an instruction's operands."""
    return [
        operand.split(" ")[-1].lstrip("%") for operand in _split(rest)[2].split(", ")
    ]
