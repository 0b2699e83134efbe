"""What devices say to each other in a compiled program: collectives counted in its text."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of an element; others end in their number of bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(ROOT )?%?([\w.\-]+) = (.*?) ([a-z][\w\-]*)\((.*)")
_CALLED = re.compile(r"(?:to_apply|calls|body|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_LOOP = re.compile(r"condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_PLACE = re.compile(r"get-tuple-element\(.*?index=(\d+)")
_CONSTANT = re.compile(r"constant\((\d+)\)")
_CHANNEL = re.compile(r"channel_id=(\d+)")


@dataclass(frozen=True)
class Traffic:
    """One kind of collective in one run of the program; bytes are of one device."""

    count: int
    bytes: int  # of the results; of a reduce-scatter what goes in
    sent: int  # over the links, by a ring: (n - 1) / n of the bytes among n devices, twice that in an all-reduce


@dataclass(frozen=True)
class _Instruction:
    """A line of a computation."""

    operation: str
    rest: str  # behind the operation's bracket
    root: bool

    @property
    def operands(self) -> list[str]:
        """Names of the instructions that it reads."""
        return re.findall(r"%([\w.\-]+)", self.rest.partition(")")[0])


def collectives(text: str, devices: int) -> dict[str, Traffic]:
    """The collectives of an optimised HLO module by kind; those inside a loop as often as it is known to run.

    What a TPU's compiler spreads over several computations, to go on meanwhile, has one channel and counts once.
    """
    found: dict[str, list[tuple[str, int, int]]] = defaultdict(list)  # of each computation
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)  # and how often it runs which others
    loops: list[tuple[str, str, str]] = []  # computation, condition, body
    lines: dict[str, dict[str, _Instruction]] = defaultdict(dict)
    name, entry, channels = "", "", set()
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head.group(2)
            entry = name if head.group(1) else entry
        elif match := _INSTRUCTION.match(line):
            root, own, result, operation, rest = match.groups()
            lines[name][own] = _Instruction(operation, rest, root is not None)
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                channel = _CHANNEL.search(line)
                if channel and channel.group(1) in channels:
                    continue
                channels |= {channel.group(1)} if channel else set()
                # A TPU's reduce-scatter is a fusion of an all-reduce with the slice that each device keeps.
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                size, group = _bytes(result, operation.endswith("-start")), _group(line, devices)
                if operation == "reduce-scatter":
                    size *= group
                found[name].append((kind, size, group))
            elif operation == "while" and not _TRIPS.search(line) and (parts := _LOOP.search(line)):
                loops.append((name, *parts.groups()))
            elif called := _CALLED.findall(line):
                trips = _TRIPS.search(line)
                times = int(trips.group(1)) if operation == "while" and trips else 1
                calls[name] += [(other.lstrip("%"), times) for group in called for other in group.split(", ")]
    for where, condition, body in loops:
        calls[where].append((body, _trips(lines[condition], lines[body])))
    totals: dict[str, list[int]] = {}

    def walk(name: str, times: int) -> None:
        for kind, size, group in found[name]:
            total = totals.setdefault(kind, [0, 0, 0])
            round_trips = {"all-reduce": 2.0, "collective-permute": group / max(group - 1, 1)}.get(kind, 1.0)
            sent = round(round_trips * size * (group - 1) / group)
            for i, value in enumerate((1, size, sent)):
                total[i] += times * value
        for other, more in calls[name]:
            walk(other, times * more)

    walk(entry, 1)
    return {kind: Traffic(*totals[kind]) for kind in KINDS if kind in totals}


def _trips(condition: dict[str, _Instruction], body: dict[str, _Instruction]) -> int:
    """How often a loop runs that counts from 0 in equal steps up to a constant; 1 where that is not what it does."""
    tests = [x.operands for x in condition.values() if x.root and x.operation == "compare" and "direction=LT" in x.rest]
    ends = [x.operands for x in body.values() if x.root and x.operation == "tuple"]
    places, limits, steps = _numbers(condition, _PLACE), _numbers(condition, _CONSTANT), _numbers(body, _CONSTANT)
    for (counter, limit), end in zip(tests, ends, strict=False):
        update = body.get(end[places[counter]]) if counter in places else None
        if limit in limits and update is not None and update.operation == "add":
            for step in filter(steps.get, update.operands):
                return math.ceil(limits[limit] / steps[step])
    return 1


def _numbers(computation: dict[str, _Instruction], stated: re.Pattern[str]) -> dict[str, int]:
    """The number that each instruction of a kind states."""
    found = {name: stated.match(f"{x.operation}({x.rest}") for name, x in computation.items()}
    return {name: int(match.group(1)) for name, match in found.items() if match}


def _bytes(result: str, started: bool) -> int:
    """Of a result's arrays; of a started collective (operands, results, numbers of its own) the larger half."""
    arrays = _ARRAY.findall(result)
    sizes = [_size(*array) for array in arrays if array[1] or not started]
    if started and result.startswith("("):
        return max(sum(sizes[: len(sizes) // 2]), sum(sizes[len(sizes) // 2 :]))
    return sum(sizes)


def _size(kind: str, dims: str) -> int:
    bits = _BITS.get(kind) if kind in _BITS else int(re.match(r"[a-z]+(\d+)", kind).group(1))
    return math.prod(int(dim.lstrip("<=")) for dim in dims.split(",") if dim) * bits // 8


def _group(line: str, devices: int) -> int:
    """How many devices take part together."""
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return listed.group(1).count(",") + 1
    if counted := re.search(r"replica_groups=\[\d+,(\d+)\]", line):
        return int(counted.group(1))
    if meshed := re.search(r"replica_groups=mesh\[([^\]]*)\].*? \{([^}]*)\}", line):
        sizes = dict(re.findall(r"'(\w+)'=(\d+)", meshed.group(1)))
        return math.prod(int(sizes[axis]) for axis in re.findall(r"'(\w+)'", meshed.group(2)) if axis in sizes)
    return devices
