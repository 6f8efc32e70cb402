"""Read the arithmetic, HBM traffic and collectives of a compiled program from its text.

XLA's own cost analysis counts a loop's body once, however often it runs, and counts on-chip traffic as HBM traffic.
Here a body counts as often as it runs, and an array whose layout places it on the chip (in another memory space than
the default) costs no HBM traffic. Arithmetic is that of convolutions and matrix products alone, because a chip's peak
rate is that of its matrix units.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import cache
from typing import NamedTuple

import numpy as np

COLLECTIVES = ("all-reduce", "all-gather", "reduce-scatter", "collective-permute", "all-to-all")
# Operations that name, group or reinterpret values and move no bytes.
FREE = {"parameter", "constant", "tuple", "get-tuple-element", "bitcast", "after-all", "partition-id", "replica-id"}
FREE |= {"optimization-barrier", "domain", "add-dependency"}
UNDER_WAY = "async_collective_fusion"  # XLA:TPU's prefix for computations that run during a collective and repeat it
SLICES = ("slice", "dynamic-slice", "gather")
_BITS = re.compile(r"[a-z]+(\d+)")
_ARRAY = re.compile(r"(\w+)\[([\d,]*)\](?:\{([\d,]*)(?::([^{}]*))?\})?")
_SPACE = re.compile(r"S\((\d+)\)")
_TILE = re.compile(r"T\(([\d,]+)\)")
_NAME = re.compile(r"%([\w.\-]+)")
_CALLED = re.compile(
    r"(calls|to_apply|body|condition|branch_computations|true_computation|false_computation)=(\{.*?\}|%[\w.\-]+)"
)


class Shape(NamedTuple):
    """An array in memory.

    bytes: bytes of its entries.
    stored: bytes with the padding to the layout's tiles.
    hbm: whether it is in HBM.
    """

    dims: tuple[int, ...]
    bytes: int
    stored: int
    hbm: bool


class Collective(NamedTuple):
    """A kind of collective and its size: the bytes of its result, but those of its operand for a reduce-scatter."""

    kind: str
    bytes: int


@dataclass
class Cost:
    """The work of one device in one call.

    flops: operations; a multiply-add counts as 2.
    collectives: collective → how often it runs.
    loops: number of loops that count as one trip because the text does not show their number of trips.
    """

    flops: float = 0.0
    hbm_bytes: float = 0.0
    collectives: dict[Collective, int] = field(default_factory=dict)
    loops: int = 0

    def add(self, other: "Cost", times: int = 1) -> None:
        self.flops += times * other.flops
        self.hbm_bytes += times * other.hbm_bytes
        for collective, count in other.collectives.items():
            self.collectives[collective] = self.collectives.get(collective, 0) + times * count
        self.loops += other.loops

    def totals(self) -> dict[str, dict[str, int]]:
        """Kind of collective → how many of it run, and their bytes in total."""
        totals: dict[str, dict[str, int]] = {}
        for (kind, size), count in self.collectives.items():
            total = totals.setdefault(kind, {"count": 0, "bytes": 0})
            total["count"] += count
            total["bytes"] += count * size
        return totals


@dataclass(frozen=True)
class Instruction:
    name: str
    shapes: tuple[Shape, ...]  # the result's shape; a tuple has one for each part
    opcode: str
    operands: tuple[str, ...]
    inside: str  # the text in the operands' parentheses
    attributes: str
    root: bool

    @property
    def called(self) -> dict[str, tuple[str, ...]]:
        return {key: tuple(_NAME.findall(names)) for key, names in _CALLED.findall(self.attributes)}


Computation = dict[str, Instruction]


def parse(text: str) -> tuple[dict[str, Computation], str]:
    """Parse `compiled.as_text()`. Returns (name → computation, name of the entry computation)."""
    computations: dict[str, Computation] = {}
    entry, current = "", {}
    for line in text.splitlines():
        if line.endswith("{") and " = " not in line.split("{")[0] and (names := _NAME.findall(line)):
            current = computations.setdefault(names[0], {})
            entry = names[0] if line.startswith("ENTRY") else entry
        elif line.startswith("  ") and " = " in line:
            instruction = _instruction(line)
            current[instruction.name] = instruction
    return computations, entry


def _instruction(line: str) -> Instruction:
    head, _, rest = line.strip().partition(" = ")
    shape, rest = (rest[: (end := _closing(rest))], rest[end + 1 :]) if rest[0] == "(" else rest.split(" ", 1)
    opcode, _, _ = rest.partition("(")
    end = _closing(rest, len(opcode))
    inside = rest[len(opcode) + 1 : end - 1]
    names, shapes = tuple(_NAME.findall(inside)), tuple(_shapes(shape))
    return Instruction(_NAME.findall(head)[0], shapes, opcode, names, inside, rest[end:], head.startswith("ROOT"))


def _closing(text: str, start: int = 0) -> int:
    """The position after the parenthesis that closes the one at `start`."""
    depth = 0
    for i in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[i], 0)
        if depth == 0:
            return i + 1
    raise ValueError(f"unbalanced parentheses in compiled text: {text[:80]}")


def _shapes(text: str) -> Iterator[Shape]:
    for dtype, sizes, order, layout in _ARRAY.findall(text):
        dims = tuple(int(n) for n in sizes.split(",") if n)
        bits = 8 if dtype == "pred" else int(match[1]) if (match := _BITS.match(dtype)) else 0
        entries = int(np.prod(dims, dtype=object)) if dims else 1
        space, tile = _SPACE.search(layout), _TILE.search(layout)
        stored = [dims[int(i)] for i in reversed(order.split(","))] if order else list(dims)  # minor-most last
        if tile:
            tiled = [int(n) for n in tile[1].split(",")]
            stored = [1] * (len(tiled) - len(stored)) + stored
            tiled = [1] * (len(stored) - len(tiled)) + tiled
            stored = [-(-n // t) * t for n, t in zip(stored, tiled, strict=True)]
        padded = int(np.prod(stored, dtype=object)) if stored else 1
        yield Shape(dims, -(-entries * bits // 8), -(-padded * bits // 8), space is None or space[1] == "0")


def cost(text: str) -> Cost:
    """The work of one device in one call of a program.

    text: `compiled.as_text()` of the program.
    An asynchronous collective counts at its start. A collective in a loop counts in every trip. For a conditional, the
    branch with the most HBM traffic counts.
    """
    computations, entry = parse(text)

    @cache
    def of(name: str, fused: bool) -> Cost:
        total = Cost()
        for instruction in computations[name].values():
            called = instruction.called
            if instruction.opcode == "while":
                trips = _trips(computations, name, instruction)
                total.loops += trips is None
                total.add(of(called["body"][0], fused), 1 if trips is None else trips)
                continue
            if instruction.opcode == "conditional":
                branches = [of(branch, fused) for names in called.values() for branch in names]
                total.add(max(branches, key=lambda branch: branch.hbm_bytes))
                continue
            inner = (
                []
                if instruction.opcode in ("reduce", "sort", "scatter", "map", *_REDUCING)
                else called.get("calls", ())
            )
            for name_of in (*inner, *(called.get("to_apply", ()) if instruction.opcode == "call" else ())):
                part = of(name_of, fused or instruction.opcode != "call")
                begun = _asynchronous(computations, name_of) in ("under way", "done")
                total.add(replace(part, collectives={}) if begun else part)
            total.flops += float(_flops(instruction, computations[name]))
            if not fused:
                total.hbm_bytes += 0 if instruction.opcode == "call" else _traffic(computations, name, instruction)
            kind = instruction.opcode.removesuffix("-start")
            if kind in COLLECTIVES:
                parts = [computations[name][operand].shapes[0] for operand in instruction.operands]
                # An all-gather has the size of its result, which an asynchronous start has at the end of a tuple.
                parts = list(instruction.shapes[-len(parts) :]) if kind == "all-gather" else parts
                total.add(Cost(collectives={Collective(kind, sum(part.bytes for part in parts)): 1}))
        return total

    return of(entry, False)


_REDUCING = ("reduce-window", "select-and-scatter", "all-reduce", "all-reduce-start", "reduce-scatter")


def _trips(computations: dict[str, Computation], name: str, loop: Instruction) -> int | None:
    """How often the loop runs; None if the text does not show it.

    The text shows it if it states the trip count, or if the loop counts from a constant by a constant up to a constant,
    as `lax.scan`'s loops do.
    """
    if match := re.search(r'"known_trip_count":\{"n":"(\d+)"', loop.attributes):
        return int(match[1])
    condition = computations[loop.called["condition"][0]]
    body = computations[loop.called["body"][0]]
    root = _root(condition)
    if root.opcode != "compare" or "direction=LT" not in root.attributes or len(root.operands) != 2:
        return None
    counter, limit = (_source(condition, operand) for operand in root.operands)
    index = re.search(r"index=(\d+)", counter.attributes)
    if counter.opcode != "get-tuple-element" or index is None or limit.opcode != "constant":
        return None
    first = _source(computations[name], computations[name][loop.operands[0]].operands[int(index[1])])
    step = _source(body, _root(body).operands[int(index[1])])
    if step.opcode != "add":
        return None
    by = [source for operand in step.operands if (source := _source(body, operand)).opcode == "constant"]
    if first.opcode != "constant" or len(by) != 1:
        return None
    return max(0, -(-(int(limit.inside) - int(first.inside)) // int(by[0].inside)))


def _asynchronous(computations: dict[str, Computation], name: str) -> str:
    """The part that this computation has in a collective that XLA:TPU fuses with other work.

    `start`, `under way` or `done`; an empty string if it has none.
    """
    if name.startswith(UNDER_WAY):
        return "under way"
    target = re.search(r'custom_call_target="AsyncCollective(\w+)"', _root(computations[name]).attributes)
    return target[1].lower() if target else ""


def _root(computation: Computation) -> Instruction:
    return next(instruction for instruction in computation.values() if instruction.root)


def _source(computation: Computation, name: str) -> Instruction:
    """The instruction that made the value, before any copies and bitcasts of it."""
    instruction = computation[name]
    while instruction.opcode in ("copy", "bitcast", "copy-done", "copy-start"):
        instruction = computation[instruction.operands[0]]
    return instruction


def _flops(instruction: Instruction, computation: Computation) -> float:
    if instruction.opcode == "dot":
        lhs = computation[instruction.operands[0]].shapes[0].dims
        contracted = [lhs[int(i)] for i in _list(instruction.attributes, "lhs_contracting_dims") if i]
        return 2.0 * np.prod(instruction.shapes[0].dims, dtype=float) * np.prod(contracted, dtype=float)
    if instruction.opcode == "convolution":
        return _convolution_flops(instruction, computation)
    return 0.0


def _list(attributes: str, name: str) -> list[str]:
    match = re.search(rf"{name}=\{{([\d,]*)\}}", attributes)
    return match[1].split(",") if match else []


def _convolution_flops(instruction: Instruction, computation: Computation) -> float:
    """2 for each multiply-add on a pixel of the image. As in XLA, padding and the zeros of dilation don't count."""
    match = re.search(r"dim_labels=(\w+)_(\w+)->(\w+)", instruction.attributes)
    assert match is not None
    (lhs, rhs), out = (
        (computation[operand].shapes[0].dims for operand in instruction.operands),
        instruction.shapes[0].dims,
    )
    window = re.search(r"window=\{([^}]*)\}", instruction.attributes)
    options = dict(part.split("=") for part in window[1].split()) if window else {}
    labels = [label for label in match[3] if label.isdigit()]

    def option(name: str, default: str) -> list[str]:
        return options[name].split("x") if name in options else [default] * len(labels)

    pairs = 1.0
    strides, pads = option("stride", "1"), option("pad", "0_0")
    spaced = option("lhs_dilate", "1"), option("rhs_dilate", "1")
    for label, stride, pad, dilation, spread in zip(labels, strides, pads, *spaced, strict=True):
        output, kernel = np.arange(out[match[3].index(label)]), np.arange(rhs[match[2].index(label)])
        size = (lhs[match[1].index(label)] - 1) * int(dilation)
        at = output[:, None] * int(stride) - int(pad.split("_")[0]) + kernel[None, :] * int(spread)
        pairs *= np.sum((at >= 0) & (at <= size) & (at % int(dilation) == 0))
    channels = rhs[match[2].index("i")]
    return 2.0 * pairs * out[match[3].index("b")] * out[match[3].index("f")] * channels


def _traffic(computations: dict[str, Computation], name: str, instruction: Instruction) -> float:
    """Bytes that an instruction outside fusions reads from HBM and writes to HBM."""
    if instruction.opcode in FREE or 'custom_call_target="AllocateBuffer"' in instruction.attributes:
        return 0.0
    computation = computations[name]
    results = sum(shape.stored for shape in instruction.shapes if shape.hbm)
    if instruction.opcode == "async-update":
        return 0.0
    if instruction.opcode.endswith("-done"):
        return float(results)
    read = [sum(shape.stored for shape in computation[operand].shapes if shape.hbm) for operand in instruction.operands]
    if instruction.opcode in ("slice-start", "dynamic-slice-start"):  # the result is (operand, slice)
        return float(min(read[0], instruction.shapes[1].stored))
    if instruction.opcode in SLICES:
        return float(results + (min(read[0], instruction.shapes[0].stored) if read[0] else 0) + sum(read[1:]))
    if instruction.opcode == "dynamic-update-slice":
        return float(2 * read[1])
    inner = instruction.called.get("calls", ()) if instruction.opcode in ("fusion", "async-start") else ()
    if inner and _asynchronous(computations, inner[0]) == "start":
        return float(sum(read))
    if inner and _asynchronous(computations, inner[0]) == "done":
        return float(results)
    used = sum(_used(computations, inner[0], i, size) for i, size in enumerate(read)) if inner else sum(read)
    if instruction.opcode.endswith("-start"):
        return float(used)
    return float(used + (_written(computations, inner[0], instruction.shapes) if inner else results))


def _used(computations: dict[str, Computation], name: str, index: int, size: int) -> int:
    """Bytes that a fused computation reads of its operand number `index`, which has `size` bytes in HBM.

    If it slices the operand, it reads the slices' bytes; if it only updates the operand, it reads nothing of it.
    """
    computation = computations[name]
    if size == 0:
        return 0

    def uses(parameter: str) -> int:
        total = 0
        for instruction in computation.values():
            if parameter not in instruction.operands:
                continue
            if instruction.opcode in SLICES and instruction.operands[0] == parameter:
                total += instruction.shapes[0].stored
            elif instruction.opcode == "dynamic-update-slice" and instruction.operands[0] == parameter:
                continue
            elif instruction.opcode == "tuple" or (instruction.opcode in COLLECTIVES and name.startswith(UNDER_WAY)):
                continue  # passed on and not read
            elif instruction.opcode == "bitcast":
                total += uses(instruction.name)
            elif instruction.opcode == "fusion":
                inner, place = instruction.called["calls"][0], instruction.operands.index(parameter)
                handed_on = _source(computations[inner], _root(computations[inner]).name)
                if handed_on.opcode == "parameter" and handed_on.inside == str(place):
                    total += uses(instruction.name)  # the fusion only renames the operand
                else:
                    total += _used(computations, inner, place, size)
            else:
                return size
        return min(total, size)

    named = (
        instruction.name
        for instruction in computation.values()
        if instruction.opcode == "parameter" and instruction.inside == str(index)
    )
    return uses(next(named))


def _written(computations: dict[str, Computation], name: str, shapes: tuple[Shape, ...]) -> int:
    """Bytes that a fusion writes to HBM. If it updates an array in place, only the update counts.

    shapes: shapes of the fusion's results.
    """
    computation = computations[name]
    root = _root(computation)
    parts = [computation[operand] for operand in root.operands] if root.opcode == "tuple" else [root]
    total = 0
    for part, shape in zip(parts, shapes, strict=False):
        while part.opcode == "bitcast":
            part = computation[part.operands[0]]
        if part.opcode == "parameter":
            continue  # passed on and not written
        if part.opcode == "fusion":
            total += _written(computations, part.called["calls"][0], (shape,))
        elif part.opcode == "dynamic-update-slice" and shape.hbm:
            total += computation[part.operands[1]].shapes[0].stored
        else:
            total += shape.stored if shape.hbm else 0
    return total
