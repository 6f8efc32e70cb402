"""Find the encoder among the keys of a checkpoint, by one rule for all trainers.

An encoder is the set of keys that follow one prefix in one dictionary of the file, and that the rules of an
architecture know. The prefix may be any: `backbone.`, `model.encoder.`, none. The parts of keys that torch's wrappers
add are passed over. Of all prefixes, dictionaries and architectures, the one with the most known keys is taken; of
equals, the one with the fewest unknown keys under the prefix, then one that is no average or copy of another (SECOND),
then the first.
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from mirigor_jax.models.pretrained.layouts import COMPANIONS, SECOND, TEXT, WRAPPERS, Architecture


@dataclass(frozen=True)
class Found:
    """An encoder in a checkpoint.

    place: where it is: "DICTIONARY/PREFIX.", without WRAPPERS; "" for keys without a prefix in no inner dictionary.
    state: the dictionary that it is in, by the file's own keys.
    used: key → (path in the Flax tree, transform).
    ignored: the keys of the dictionary that belong to a head, to another network or to no network.
    unexpected: the keys under the prefix that no rule knows.
    """

    architecture: Architecture
    place: str
    state: Mapping[str, np.ndarray]
    used: Mapping[str, tuple[str, str]]
    ignored: tuple[str, ...]
    unexpected: tuple[str, ...]


def find(
    tensors: Mapping[str, np.ndarray], architectures: Iterable[Architecture], place: str | None = None
) -> tuple[Found | None, tuple[str, ...]]:
    """The encoder in a checkpoint, and the places of further encoders of the same size.

    tensors: see `read_tensors`.
    architectures: those that are looked for.
    place: looks only in this place, or in those inside. None: everywhere.
    Returns (None, ()) if no rule knows any key.
    """
    states: dict[str, dict[str, np.ndarray]] = {}
    for whole, array in tensors.items():
        outer, slash, key = whole.rpartition("/")
        states.setdefault(outer + slash, {})[key] = array
    counts: Counter[tuple[Architecture, str, str]] = Counter()
    for architecture in architectures:
        first, known = _known(architecture)
        for outer, state in states.items():
            for key in map(plain, state):
                for part in re.finditer(r"[^.]+", key):
                    begin = part.start()
                    if not first(part[0]) or not known.fullmatch(key, begin) or re.search(TEXT, outer + key[:begin]):
                        continue
                    if place is None or _is_in(outer + key[:begin], place):
                        counts[architecture, outer, key[:begin]] += 1
    most = max(counts.values(), default=0)
    equals = [_found(*where, states[where[1]]) for where, count in counts.items() if count == most]
    if not equals:
        return None, ()
    best = min(equals, key=lambda found: (len(found.unexpected), bool(re.search(SECOND, found.place))))
    copies = [
        _found(a, o, prefix, states[o])
        for (a, o, prefix), count in counts.items()
        if a is best.architecture and count > 0.8 * most
    ]
    return best, tuple(copy.place for copy in copies if copy.state is not best.state or not {*copy.used} & {*best.used})


def plain(key: str) -> str:
    """The key without the parts that torch's wrappers add."""
    return re.sub(WRAPPERS, "", key)


def _is_in(name: str, place: str) -> bool:
    inside, place = re.split(r"[/.]", name.rstrip("/.")), plain(place).rstrip("/.")
    return inside[: len(re.split(r"[/.]", place))] == re.split(r"[/.]", place)


@cache
def _known(architecture: Architecture) -> tuple[Callable[[str], bool], re.Pattern[str]]:
    """Whether a rule of the architecture begins with this part of a key; and a regex of every key that a rule knows.

    The first one is there for speed: few of a checkpoint's many keys pass it, and it remembers its answers.
    """
    unnamed = [re.sub(r"\(\?P<\w+>", "(?:", pattern) for pattern, _, _ in architecture.rules]
    begin = re.compile("|".join(sorted({pattern.split(r"\.")[0] for pattern in unnamed})))
    known = re.compile("|".join(f"(?:{pattern})" for pattern in unnamed))
    return cache(lambda part: begin.fullmatch(part) is not None), known


def _found(architecture: Architecture, outer: str, prefix: str, state: Mapping[str, np.ndarray]) -> Found:
    used: dict[str, tuple[str, str]] = {}
    ignored, unexpected = [], []
    for key in state:
        inside = plain(key).startswith(prefix)
        rest = plain(key).removeprefix(prefix)
        rule = next((rule for rule in architecture.rules if inside and re.fullmatch(rule[0], rest)), None)
        if rule is not None:
            match = re.fullmatch(rule[0], rest)
            assert match is not None
            path = re.sub(r"(\d+)\+1", lambda number: str(int(number[1]) + 1), match.expand(rule[1]))
            used[key] = (path, rule[2])
        elif (
            not inside
            or re.fullmatch(COMPANIONS, rest.split(".")[0])
            or any(re.fullmatch(pattern, rest) for pattern in architecture.ignored)
        ):
            ignored.append(key)
        else:
            unexpected.append(key)
    return Found(architecture, outer + prefix, state, used, tuple(ignored), tuple(unexpected))
