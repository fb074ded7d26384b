"""What does a compiled program send between devices? Collectives: counts and bytes, from its text.

Loops are counted as often as they run. A program is a list of computations, each of which
is a list of instructions; loops, branches and fusions run other computations by name:

    %body (p: (f32[16], s32[])) -> (f32[16], s32[]) {
      %part = f32[16]{0} get-tuple-element(%p), index=0
      %sum = f32[16]{0} all-reduce(%part), channel_id=1, to_apply=%add
      ...
    }

    ENTRY %main (x: f32[16]) -> f32[16] {
      %loop = (f32[16]{0}, s32[]) while(%start), condition=%less, body=%body
      ...
    }
"""

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

# The first line of a computation, and each further line: name, then all behind the "=".
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?([\w.\-]+) = (.*)$")
# The operation follows the type, whose layouts have parentheses of their own.
_OPERATION = re.compile(r"(?<=[\s)}\]])([a-z][\w\-]*)\(([^)]*)\)")
# Computations that an instruction runs, one by one or as a list.
_CALLED = re.compile(
    r"(?:calls|to_apply|body|condition|true_computation|false_computation)=%?([\w.\-]+)"
    r"|branch_computations=\{([^}]*)\}"
)
# An array type such as bf16[8,128]: dtype, whose first number is its bits, and shape.
_ARRAY = re.compile(r"\b([a-z]+\d+[a-z0-9]*|pred)\[([\d,]*)\]")
_BITS = re.compile(r"\d+")
_COMMENT = re.compile(r"/\*.*?\*/")  # numbers the operands of long lists
# How often a loop runs, and what it compares its counter with.
_KNOWN_TRIPS = re.compile(r'known_trip_count":\{"n":"(\d+)"')
_CONDITION = re.compile(r"condition=%?([\w.\-]+)")
_CONSTANT = re.compile(r" constant\((\d+)\)")
_TUPLE_INDEX = re.compile(r" get-tuple-element\(.*index=(\d+)")


@dataclasses.dataclass
class Traffic:
    """One kind of collective in one execution of a program, on one device."""

    count: int = 0
    # Of operands or results, whichever are more: a device sends and receives at most that.
    bytes: int = 0


@dataclasses.dataclass(frozen=True)
class _Instruction:
    """One line of a computation: `%name = result operation(operands), attributes`."""

    name: str
    text: str  # all that follows the equals sign
    result: str  # its type
    operation: str
    operands: list[str]  # their names

    @classmethod
    def parse(cls, name: str, text: str) -> "_Instruction":
        """The instruction `name`, from all that follows the equals sign."""
        operation = _OPERATION.search(text)
        if not operation:
            return cls(name, text, result=text, operation="", operands=[])
        result = text[: operation.start()].strip()
        operands = [_name(operand) for operand in operation[2].split(", ")]
        return cls(name, text, result, operation[1], operands)

    def called(self) -> list[str]:
        """The names of the computations that it runs."""
        names = []
        for single, branches in _CALLED.findall(self.text):
            if single:
                names.append(single)
            else:
                names += [_name(branch) for branch in branches.split(",")]
        return names


def _name(reference: str) -> str:
    """The name in a reference, which may follow its type: `f32[8] %x`."""
    return reference.strip().split(" ")[-1].lstrip("%")


_Instructions = dict[str, _Instruction]  # of one computation, by name
_Computations = dict[str, _Instructions]


def collectives(text: str) -> dict[str, Traffic]:
    """Traffic by kind of collective, for any platform.

    Every branch of a condition counts, and a loop counts once if its text does not tell
    how often it runs.

    Args:
      text: of a compiled program (`compiled.as_text()`).

    Returns:
      Counts and bytes of one device for one execution; kinds that do not occur are left
      out.
    """
    computations, entry = _parse(text)
    runs = _count_runs(computations, entry)
    by_kind: dict[str, Traffic] = {}
    for name, instructions in computations.items():
        if not runs.get(name) or _continues_another(name, instructions):
            continue
        for instruction in instructions.values():
            kind = instruction.operation.removesuffix("-start")
            if kind not in KINDS:
                continue
            # The compiler for TPU fuses a reduce-scatter from an all-reduce and a slice.
            if name.startswith("all-reduce-scatter"):
                kind = "reduce-scatter"
            traffic = by_kind.setdefault(kind, Traffic())
            traffic.count += runs[name]
            traffic.bytes += runs[name] * _transferred_bytes(instruction, instructions)
    return by_kind


def _parse(text: str) -> tuple[_Computations, str]:
    """The computations of a program, and the name of the first to run."""
    computations: _Computations = {}
    entry = ""
    current: _Instructions = {}
    for line in _COMMENT.sub("", text).splitlines():
        if header := _COMPUTATION.match(line):
            name = header[2]
            current = computations[name] = {}
            if header[1]:
                entry = name
        elif match := _INSTRUCTION.match(line):
            name = match[1]
            current[name] = _Instruction.parse(name, match[2])
    return computations, entry


def _continues_another(name: str, instructions: _Instructions) -> bool:
    """Whether a computation only continues a collective that another one began.

    The compiler for TPU spreads some of them over several computations.
    """
    if name.startswith("async_collective_fusion"):
        return True
    return any("AsyncCollectiveDone" in each.text for each in instructions.values())


def _transferred_bytes(collective: _Instruction, instructions: _Instructions) -> int:
    """Bytes that it sends or receives on one device, whichever are more."""
    operand_types = [instructions[name].result for name in collective.operands]
    sent = sum(_bytes(operand_type) for operand_type in operand_types)
    received = _bytes(collective.result)
    # A send, and a start whose result is a tuple, repeat the operands in their result.
    is_start = collective.operation.endswith("-start")
    is_tuple = collective.result.startswith("(")
    if collective.operation == "send" or (is_start and is_tuple):
        received -= sent
    return max(sent, received)


def _bytes(type_text: str) -> int:
    """Bytes of all arrays of a type such as `(f32[16]{0}, bf16[2,8]{1,0})`."""
    total = 0
    # Layouts in braces, tiles in parentheses and tokens have no bytes.
    for dtype, shape in _ARRAY.findall(type_text):
        bits = 8  # of pred, a truth value
        if digits := _BITS.search(dtype):
            bits = int(digits[0])
        # A scalar has no sizes, and one element.
        sizes = [int(size) for size in shape.split(",") if size]
        total += math.prod(sizes) * bits // 8
    return total


def _count_runs(computations: _Computations, entry: str) -> dict[str, int]:
    """How often each computation runs when the program runs once."""
    runs: dict[str, int] = {}

    def visit(name: str, times: int) -> None:
        """Adds the runs of a computation, and of all that it calls."""
        # One computation may be called from several others, or twice from one.
        runs[name] = runs.get(name, 0) + times
        instructions = computations.get(name, {})
        for instruction in instructions.values():
            trips = 1
            if instruction.operation == "while":
                trips = _trips(instruction, instructions, computations)
            for called in instruction.called():
                visit(called, times * trips)

    visit(entry, 1)
    return runs


def _trips(
    loop: _Instruction,
    instructions: _Instructions,
    computations: _Computations,
) -> int:
    """Iterations of a loop; 1 where its text does not tell.

    They are what the compiler states, or else the distance from the counter's start to
    the one constant with which the condition compares it.
    """
    if known := _KNOWN_TRIPS.search(loop.text):
        return int(known[1])
    condition = _CONDITION.search(loop.text)
    if not condition:
        return 1
    # The condition is a computation of its own: `counter < limit`.
    comparing = computations[condition[1]].values()
    condition_text = "\n".join(each.text for each in comparing)
    limits = _CONSTANT.findall(condition_text)
    counters = _TUPLE_INDEX.findall(condition_text)
    if len(limits) != 1 or len(counters) != 1:
        return 1
    # The loop's operand is the tuple of its initial values, one of which is the counter.
    initial = instructions.get(loop.operands[0])
    if not initial or initial.operation != "tuple":
        return int(limits[0])
    counter = initial.operands[int(counters[0])]
    return int(limits[0]) - _constant(counter, instructions)


def _constant(name: str, instructions: _Instructions) -> int:
    """The value of a constant or of its copies, 0 of anything else.

    A loop whose first iterations were peeled off does not start at 0.
    """
    instruction = instructions.get(name)
    if not instruction:
        return 0
    if constant := _CONSTANT.search(instruction.text):
        return int(constant[1])
    if instruction.operation == "copy":
        return _constant(instruction.operands[0], instructions)
    return 0
