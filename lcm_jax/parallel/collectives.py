"""What devices say to each other in a compiled program: collectives counted in its text."""

import math
import re
from collections import defaultdict
from dataclasses import dataclass

KINDS = ("all-gather", "all-reduce", "reduce-scatter", "all-to-all", "collective-permute", "collective-broadcast")
_BITS = {"pred": 8, "token": 0, "opaque": 0}  # of an element; others end in their number of bits
_COMPUTATION = re.compile(r"^(ENTRY )?%?([\w.\-]+) \(.*\{$")
_INSTRUCTION = re.compile(r"^\s+(?:ROOT )?%?[\w.\-]+ = (.*?) ([a-z][\w\-]*)\(")
_CALLED = re.compile(r"(?:to_apply|calls|body|branch_computations|called_computations)=\{?((?:%?[\w.\-]+(?:, )?)+)\}?")
_ARRAY = re.compile(r"([a-z]\w*)\[([\d,<=]*)\]")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')


@dataclass(frozen=True)
class Traffic:
    """One kind of collective in one run of the program; bytes are of one device."""

    count: int
    bytes: int  # of the results; of a reduce-scatter what goes in
    sent: int  # over the links, by a ring: (n - 1) / n of the bytes among n devices, twice that in an all-reduce


def collectives(text: str, devices: int) -> dict[str, Traffic]:
    """The collectives of an optimised HLO module by kind; those inside a loop as often as it is known to run."""
    found: dict[str, list[tuple[str, int, int]]] = defaultdict(list)  # of each computation
    calls: dict[str, list[tuple[str, int]]] = defaultdict(list)  # and how often it runs which others
    name, entry = "", ""
    for line in text.splitlines():
        if head := _COMPUTATION.match(line):
            name = head.group(2)
            entry = name if head.group(1) else entry
        elif match := _INSTRUCTION.match(line):
            result, operation = match.groups()
            kind = operation.removesuffix("-start")
            if kind in KINDS:
                # A TPU's reduce-scatter is a fusion of an all-reduce with the slice that each device keeps.
                kind = "reduce-scatter" if name.startswith("all-reduce-scatter") else kind
                size, group = _bytes(result, operation.endswith("-start")), _group(line, devices)
                if operation == "reduce-scatter":
                    size *= group
                found[name].append((kind, size, group))
            elif called := _CALLED.findall(line):
                trips = _TRIPS.search(line)
                times = int(trips.group(1)) if operation == "while" and trips else 1
                calls[name] += [(other.lstrip("%"), times) for group in called for other in group.split(", ")]
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


def _bytes(result: str, started: bool) -> int:
    """Of a result's arrays; of a started collective (operands, results) the larger half."""
    sizes = [_size(*array) for array in _ARRAY.findall(result)]
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
