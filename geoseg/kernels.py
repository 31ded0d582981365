"""The U-Net's convolutions in LLVM's language, with a fifth of the multiplications.

Winograd's minimal filtering (Lavin & Gray 2016, "Fast algorithms for convolutional neural networks",
arXiv:1509.09308) gets 6 × 6 outputs of a filter of 3 × 3 from 64 products instead of 324, and 7 × 7 outputs of one of
2 × 2 from 64 instead of 196: eight numbers are taken apart as values at eight points, multiplied there, and put
together again. The same eight points serve both. The filter of 2 × 2 is a transposed convolution of stride two: its
outputs come in fours, each four of them from the same four pixels (:func:`geoseg.native.quartered`).

The work goes on in groups of tiles, as many as keep what they are taken apart into in the processor's cache: apart, 64
matrix products, together with bias, addend and ReLU. Each output is computed by the same operations in the same order
whatever the vectors' length and the number of threads, so it is the same to the bit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from llvmlite import ir

from geoseg.codegen import FLOAT, INDEX, POINTER, WORD, Function, Value, Vectors
from geoseg.pool_kernel import write_pool

PAIRS = (1.0, 2.0, 0.5)
"""The points are 0, these and their opposites, and infinity."""
SIDE = 2 * len(PAIRS) + 2
POINTS = SIDE * SIDE
CHUNK = 16
"""Channels that lie together, tile after tile."""
TABLES = 2048
"""Floats at the start of a thread's own memory: addresses, and a tile of one vector's channels on its way."""
_ON_ITS_WAY = 512
UNROLL = 4


@dataclass(frozen=True)
class Kind:
    """A way to compute: ``outputs`` a side from filters of ``taps``, which are put ``apart`` pixels from each other."""

    name: str
    outputs: int
    taps: int
    apart: int

    @property
    def filter(self) -> list[list[float]]:
        """G, ``(8, taps)``: what filters are taken apart with."""
        found = []
        for point in _points():
            scale = prod(point - other for other in _points() if other != point)
            found.append([point**power / scale for power in range(self.taps)])
        return [*found, [float(power == self.taps - 1) for power in range(self.taps)]]


CONV = Kind("conv", 6, 3, 1)
DOUBLE = Kind("double", 7, 2, 2)
KINDS = (CONV, DOUBLE)


@dataclass(frozen=True)
class Machine:
    """What a processor multiplies at once: vectors of ``lanes`` floats, ``rows`` tiles by ``across`` vectors."""

    lanes: int
    rows: int
    across: int

    @property
    def panel(self) -> int:
        """Channels of an answer that are computed together."""
        return self.lanes * self.across


FIELDS = (
    # Pointers: tables of the addresses of rows, memory, counters.
    "given", "answer", "addend", "filters", "bias", "zeros", "nowhere", "group", "ticket", "memory",
    # Numbers.
    "size", "height", "width", "high", "wide", "above", "across", "tiles", "groups", "at_once", "channels", "out",
    "row", "aside", "floor",
)  # fmt: skip
"""What a kernel is given, 64 bits each.

``given`` and ``addend`` are tables of the addresses of rows, whose pixels lie ``channels`` and ``aside`` floats apart;
``answer`` is memory whose rows are ``row`` floats apart. ``filters`` is what :func:`geoseg.native.packed` returns.
``zeros`` has as many zeros as there are channels, in or out; what is beyond the answer is written to ``nowhere``.
``group`` and ``ticket`` are counters that start at 0; each thread has ``size`` floats of ``memory``. The image has
``height`` rows, with ``above`` rows of zeros above, and ``width`` columns; the answer ``high`` and ``wide``. There are
``tiles``, ``across`` in a row, in ``groups`` of ``at_once``. No answer is below ``floor``, a float's bits.
"""
_POINTERS = 10


def module(machine: Machine) -> str:
    """Return the kernels ``conv``, ``double`` and ``pool`` for a processor, in LLVM's language."""
    found = ir.Module("geoseg")
    products = [_product(found, machine, "product", machine.across)]
    if machine.panel > CHUNK:
        products.append(_product(found, machine, "product_last", CHUNK // machine.lanes))
    for kind in KINDS:
        _Kernel(found, machine, kind, products).write()
    write_pool(found, machine.lanes)
    return str(found)


def _points() -> list[float]:
    return [0.0, *(sign * point for point in PAIRS for sign in (1, -1))]


def _squares(without: float | None = None) -> list[float]:
    """Return the coefficients, of even powers, of the product of ``x² - point²`` over the pairs."""
    found = [1.0]
    for point in PAIRS:
        if point != without:
            lower, higher = [-(point**2) * value for value in found], found
            found = [a + b for a, b in zip([*lower, 0.0], [0.0, *higher], strict=True)]
    return found


def _weighed(vectors: Vectors, factors: Sequence[float], values: Sequence[Value]) -> Value:
    """Return a sum of products, the last first: its factor is 1."""
    total = None
    for factor, value in reversed(list(zip(factors, values, strict=True))):
        total = vectors.more(total, factor, value)
    return total


def _taken_apart(vectors: Vectors, values: Sequence[Value]) -> list[Value]:
    """Return Bᵀd: each row is the polynomial that is zero at all points but one."""
    found = [_weighed(vectors, _squares(), values[0:7:2])]
    for point in PAIRS:
        factors = _squares(point)
        even, odd = (_weighed(vectors, factors, values[first : first + 5 : 2]) for first in (2, 1))
        found += [vectors.more(even, point, odd), vectors.more(even, -point, odd)]
    return [*found, _weighed(vectors, _squares(), values[1:8:2])]


def _put_together(vectors: Vectors, values: Sequence[Value], outputs: int) -> list[Value]:
    """Return Aᵀm: each row is a power of the points."""
    zero, *both, infinity = values
    pairs = list(zip(both[::2], both[1::2], strict=True))
    sums = [vectors.more(first, 1, second) for first, second in pairs]
    differences = [vectors.more(first, -1, second) for first, second in pairs]
    found = []
    for power in range(outputs):
        total = zero if power == 0 else None
        for point, value in zip(PAIRS, differences if power % 2 else sums, strict=True):
            total = vectors.more(total, point**power, value)
        found.append(vectors.more(total, 1, infinity) if power == outputs - 1 else total)
    return found


def _product(module: ir.Module, machine: Machine, name: str, across: int) -> Function:
    """Write a product of matrices, ``rows × channels`` by ``channels × across`` vectors.

    Its arguments are the first, ``(channels / 16, at once, 16)``, the second, ``(channels, across vectors)``, the
    answer, ``(channels out / 16, at once, 16)``, the number of channels and of tiles at once.
    """
    function = Function(module, name, [POINTER, POINTER, POINTER, WORD, WORD])
    first, second, answer, channels, at_once = function.arguments
    vectors = Vectors(function, machine.lanes)
    chunk = function.times(at_once, CHUNK)

    def turn(number: Value, second: Value, *sums: Value) -> list[Value]:
        mine = function.at(first, function.times(number, chunk))

        def some(start: Value, second: Value, *sums: Value) -> list[Value]:
            new = list(sums)
            for step in range(UNROLL):
                line = [
                    vectors.load(function.at(second, (step * across + number) * machine.lanes))
                    for number in range(across)
                ]
                for row in range(machine.rows):
                    factor = vectors.spread(function.at(mine, start, step + row * CHUNK))
                    for number, values in enumerate(line):
                        place = row * across + number
                        new[place] = vectors.fma(factor, values, new[place])
            return [function.at(second, UNROLL * across * machine.lanes), *new]

        return list(function.loop(CHUNK, some, [second, *sums], UNROLL))

    zeros = [vectors.same(0)] * (machine.rows * across)
    _, *sums = function.loop(function.write.ashr(channels, function.word(4)), turn, [second, *zeros])
    for place, total in enumerate(sums):
        row, number = divmod(place, across)
        far, near = divmod(number * machine.lanes, CHUNK)
        vectors.store(total, function.at(answer, function.times(chunk, far), row * CHUNK + near))
    function.end()
    return function


class _Kernel:
    """A kernel while it is being written."""

    def __init__(self, module: ir.Module, machine: Machine, kind: Kind, products: Sequence[Function]) -> None:
        self._kind, self._machine, self._products = kind, machine, products
        self._function = function = Function(module, kind.name, [POINTER])
        self._vectors = Vectors(function, machine.lanes)
        (fields,) = function.arguments
        self._given = {
            name: function.item(fields, number, POINTER if number < _POINTERS else WORD)
            for number, name in enumerate(FIELDS)
        }

    def write(self) -> None:
        """Write all of it."""
        function, given = self._function, self._given
        floor = function.write.bitcast(function.write.trunc(given["floor"], INDEX), FLOAT)
        self._floor = self._vectors.same(floor)
        at_once = given["at_once"]
        # What the thread has for itself: addresses, tiles taken apart, their products.
        mine = function.at(given["memory"], function.times(function.next(given["ticket"]), given["size"]))
        self._table = mine
        self._chunk = function.times(at_once, CHUNK)
        self._apart = function.at(mine, TABLES)
        self._apart_size = function.times(at_once, given["channels"])
        self._products_at = function.at(self._apart, function.times(POINTS, self._apart_size))
        phases = self._kind.apart**2
        self._channels = function.times(given["out"], phases)
        self._products_size = function.times(at_once, self._channels)

        def group(number: Value) -> None:
            first = function.times(number, at_once)
            count = function.least(function.minus(given["tiles"], first), at_once)
            function.loop(count, lambda tile: self._take_apart(first, tile))
            function.loop(POINTS, lambda point: self._multiply(point, count))
            function.loop(
                phases, lambda phase: function.loop(count, lambda tile: self._put_together(first, tile, phase)) and None
            )

        function.until(given["group"], given["groups"], group)
        function.end()

    def _corner(self, first: Value, tile: Value) -> tuple[Value, Value]:
        """Return the row and the column of a tile's first output."""
        function, across = self._function, self._given["across"]
        number = function.add(first, tile)
        row, column = function.write.udiv(number, across), function.write.urem(number, across)
        return function.times(row, self._kind.outputs), function.times(column, self._kind.outputs)

    def _chunks(self, channels: Value, body: object) -> None:
        """Do something for each vector of channels: ``body(chunk, place in it, channel)``."""
        function = self._function

        def chunk(number: Value) -> None:
            def piece(place: Value) -> None:
                body(number, place, function.add(function.times(number, CHUNK), place))  # type: ignore[operator]

            function.loop(CHUNK, piece, step=self._machine.lanes)

        function.loop(function.write.ashr(channels, function.word(4)), chunk)

    def _leave(self, column: Value, values: Sequence[Value]) -> None:
        """Put down a column of a tile that is half done."""
        for row, value in enumerate(values):
            place = self._function.times(self._function.add(column, row * SIDE), self._machine.lanes)
            self._vectors.store(value, self._function.at(self._table, place, _ON_ITS_WAY))

    def _left(self, row: Value) -> list[Value]:
        """Return a row of what :meth:`_leave` put down."""
        start = self._function.at(self._table, self._function.times(row, SIDE * self._machine.lanes), _ON_ITS_WAY)
        return [self._vectors.load(self._function.at(start, place * self._machine.lanes)) for place in range(SIDE)]

    def _take_apart(self, first: Value, tile: Value) -> None:
        """Write Bᵀ d B of a tile's 8 × 8 pixels, of all channels."""
        function, vectors, given = self._function, self._vectors, self._given
        write, table = function.write, self._table
        top, left = self._corner(first, tile)
        columns = []
        for number in range(SIDE):
            column = function.add(left, number - 1)
            columns.append((function.within(column, given["width"]), function.times(column, given["channels"])))

        def line(number: Value) -> None:
            row = function.minus(function.add(top, number), given["above"])
            there = function.within(row, given["height"])
            start = function.item(given["given"], write.select(there, row, function.word(0)), POINTER)
            for place, (known, column) in enumerate(columns):
                address = write.select(write.and_(there, known), function.at(start, column), given["zeros"])
                function.put(address, table, function.add(function.times(number, SIDE), place))

        function.loop(SIDE, line)
        mine = function.at(self._apart, function.times(tile, CHUNK))

        def piece(chunk: Value, place: Value, channel: Value) -> None:
            target = function.at(mine, function.times(chunk, self._chunk), place)

            def column(number: Value) -> None:
                pixels = [function.item(table, function.add(number, row * SIDE), POINTER) for row in range(SIDE)]
                values = [vectors.load(function.at(pixel, channel)) for pixel in pixels]
                self._leave(number, _taken_apart(vectors, values))

            def row(number: Value) -> None:
                start = function.at(target, function.times(number, SIDE, self._apart_size))
                for place, value in enumerate(_taken_apart(vectors, self._left(number))):
                    vectors.store(value, function.at(start, function.times(self._apart_size, place)))

            function.loop(SIDE, column)
            function.loop(SIDE, row)

        self._chunks(given["channels"], piece)

    def _multiply(self, point: Value, count: Value) -> None:
        """Multiply what all tiles of a group have at a point with the filters there."""
        function, given = self._function, self._given
        first = function.at(self._apart, function.times(point, self._apart_size))
        answer = function.at(self._products_at, function.times(point, self._products_size))
        filters = function.at(given["filters"], function.times(point, given["channels"], self._channels))
        panel = self._machine.panel
        panels = function.write.udiv(self._channels, function.word(panel))

        def columns(product: Function, start: Value) -> None:
            second = function.at(filters, function.times(start, given["channels"]))
            to = function.at(answer, function.times(start, given["at_once"]))

            def rows(tile: Value) -> None:
                places = function.at(first, function.times(tile, CHUNK)), function.at(to, function.times(tile, CHUNK))
                function.call(product, places[0], second, places[1], given["channels"], given["at_once"])

            function.loop(count, rows, step=self._machine.rows)

        function.loop(panels, lambda number: columns(self._products[0], function.times(number, panel)))
        if len(self._products) > 1:
            done = function.times(panels, panel)
            rest = function.minus(self._channels, done)
            function.loop(rest, lambda start: columns(self._products[1], function.add(done, start)), step=CHUNK)

    def _put_together(self, first: Value, tile: Value, phase: Value) -> None:
        """Write Aᵀ m A of a tile, with bias and addend, where the answer is."""
        function, vectors, given, kind = self._function, self._vectors, self._given, self._kind
        write, outputs = function.write, kind.outputs
        answers, addends = self._table, function.at(self._table, outputs * outputs, kind=POINTER)
        top, left = self._corner(first, tile)
        down, right = (operation(phase, function.word(kind.apart)) for operation in (write.udiv, write.urem))
        # Apart, the pixels of the first row of outputs begin above the answer where there are zeros above.
        shift = (given["above"], 1) if kind.apart > 1 else (0, 0)
        columns = []
        for number in range(outputs):
            column = function.minus(
                function.times(function.add(left, number), kind.apart), function.minus(shift[1], right)
            )
            places = function.times(column, given["out"]), function.times(column, given["aside"])
            columns.append((function.within(column, given["wide"]), *places))

        def line(number: Value) -> None:
            row = function.minus(function.add(function.times(function.add(top, number), kind.apart), down), shift[0])
            there = function.within(row, given["high"])
            start = function.at(given["answer"], function.times(row, given["row"]))
            aside = function.item(given["addend"], write.select(there, row, function.word(0)), POINTER)
            for place, (known, column, added) in enumerate(columns):
                inside, pixel = write.and_(there, known), function.add(function.times(number, outputs), place)
                address = write.select(inside, function.at(start, column), given["nowhere"])
                function.put(address, answers, pixel)
                address = write.select(inside, function.at(aside, added), given["zeros"])
                function.put(address, addends, pixel)

        function.loop(outputs, line)
        products = function.at(self._products_at, function.times(given["out"], given["at_once"], phase))
        mine = function.at(products, function.times(tile, CHUNK))

        def piece(chunk: Value, place: Value, channel: Value) -> None:
            source = function.at(mine, function.times(chunk, self._chunk), place)
            bias = vectors.load(function.at(given["bias"], channel))

            def column(number: Value) -> None:
                points = [function.add(number, row * SIDE) for row in range(SIDE)]
                values = [vectors.load(function.at(source, function.times(self._products_size, p))) for p in points]
                self._leave(number, _put_together(vectors, values, outputs))

            def row(number: Value) -> None:
                for place, value in enumerate(_put_together(vectors, self._left(number), outputs)):
                    pixel = function.add(function.times(number, outputs), place)
                    added = vectors.load(function.at(function.item(addends, pixel, POINTER), channel))
                    total = vectors.add(vectors.add(value, bias), added)
                    target = function.at(function.item(answers, pixel, POINTER), channel)
                    vectors.store(vectors.largest(total, self._floor), target)

            function.loop(SIDE, column)
            function.loop(outputs, row)

        self._chunks(given["out"], piece)
