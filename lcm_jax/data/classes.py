"""The classes of a labelled set: names in order, whose places are the numbers that networks are told."""

from collections.abc import Iterable, Mapping, Sequence

from lcm_jax.data.example import Example

MOST = 100_000  # numbers above are hardly classes


def class_names(examples: Iterable[Example]) -> tuple[str, ...]:
    """As the source lists its classes, else the labels that occur, sorted; none of a set without labels.

    Labels that are whole numbers stay what they are: the names count from "0" to the largest. Raises ValueError for
    a label that the source does not list, and for numbers above MOST.
    """
    found = {example.label: example.key for example in examples if example.label is not None}
    if listed := tuple(getattr(examples, "classes", ())):
        if odd := sorted(found.keys() - set(listed)):
            has = f"{found[odd[0]]!r} has the label {odd[0]!r}"
            raise ValueError(f"{has}, which is none of the set's {len(listed)} classes: mend it")
        return listed
    if not found or not all(label.isdecimal() for label in found):
        return tuple(sorted(found))
    largest = max(map(int, found))
    if largest > MOST:
        key = next(key for label, key in found.items() if int(label) == largest)
        raise ValueError(f"{key!r} has the label {largest}, too large for the number of a class: labels count from 0")
    return tuple(map(str, range(largest + 1)))


def places(names: Sequence[str]) -> dict[str, int]:
    """Class -> its number."""
    return {name: number for number, name in enumerate(names)}


def number_of(label: str | None, place: Mapping[str, int]) -> int | None:
    """The number of a label; one that is a number may be written with leading zeros."""
    if label is None:
        return None
    return place[label] if label in place else place[str(int(label))]
