"""The cheapest cut of rings into walls (:func:`geoseg.fitting.cheapest`), in LLVM's language.

The same sums, products and comparisons in the same order as numpy's there, so the same cut to the last bit; but one
number at a time, and none of it is kept: an eighth of the time.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from geoseg.codegen import Value

KINDS = 3
ARGUMENTS = (
    *("xy", "running", "corner", "begin", "size", "direction", "price", "only_free", "must"),
    *("arrive", "back", "before", "leave"),
)
"""Arrays that the kernel takes: whole numbers of 64 bits, float64 or bool. What ``leave`` holds does not matter."""


def write_cheapest(
    module: Any, *, window: int, unit: float, enough: float, trim: int, free_price: float, jog_price: float
) -> None:
    """Write the function ``cheapest``, which takes :data:`ARGUMENTS`, the number of rings, and that of samples."""
    from llvmlite import ir

    from geoseg.codegen import POINTER, WORD, Function

    real, byte = ir.DoubleType(), ir.IntType(8)
    function = Function(module, "cheapest", [POINTER] * len(ARGUMENTS) + [WORD] * 2)
    write = function.write
    square_root = ir.Function(module, ir.FunctionType(real, [real]), "llvm.sqrt.f64")
    given = dict(zip(ARGUMENTS, function.arguments, strict=False))
    rings, samples = function.arguments[len(ARGUMENTS) :]
    infinity = ir.Constant(real, float("inf"))

    def number(value: float) -> Value:
        return ir.Constant(real, value)

    def whole(name: str, place: Value) -> Value:
        return function.item(given[name], place)

    def float_of(name: str, place: Value) -> Value:
        return function.item(given[name], place, real)

    def is_set(name: str, place: Value) -> Value:
        return write.icmp_unsigned("!=", function.item(given[name], place, byte), ir.Constant(byte, 0))

    def as_float(value: Value) -> Value:
        return write.sitofp(value, real)

    def root(value: Value) -> Value:
        return write.call(square_root, [value])

    def smaller(value: Value, limit: Value) -> Value:
        return write.fcmp_ordered("<", value, limit)

    def not_negative(value: Value) -> Value:
        return write.select(write.fcmp_ordered(">", value, number(0.0)), value, number(0.0))

    def moments(first: Value, last: Value) -> tuple[Value, Value, Value, Value]:
        """As :meth:`geoseg.fitting.Sums.moments`: number, and central second moments."""
        count = function.minus(last, first)
        one = write.zext(write.icmp_signed(">", count, function.word(1)), WORD)
        share = write.sdiv(count, function.word(6))
        # As numpy clips: not below the one, then not above the other.
        share = write.select(write.icmp_signed("<", share, one), one, share)
        left_out = function.least(share, trim)
        low, high = function.add(first, left_out), function.add(function.minus(last, left_out), 1)
        length = function.minus(high, low)
        x0, y0 = (whole("xy", function.add(function.times(low, 2), axis)) for axis in (0, 1))
        sums = []
        for row in range(5):
            at = function.times(row, function.add(samples, 1))
            sums.append(function.minus(*(whole("running", function.add(at, end)) for end in (high, low))))
        sx, sy, sxx, sxy, syy = sums

        def square(total: Value, of: Value, origin: Value) -> Value:
            less = function.minus(total, function.times(2, origin, of))
            return function.add(less, function.times(length, origin, origin))

        sxy = function.minus(function.minus(sxy, function.times(x0, sy)), function.times(y0, sx))
        sxy = function.add(sxy, function.times(length, x0, y0))
        sxx, syy = square(sxx, sx, x0), square(syy, sy, y0)
        n = as_float(length)
        mx, my = (
            write.fdiv(as_float(function.minus(of, function.times(length, origin))), n)
            for of, origin in ((sx, x0), (sy, y0))
        )

        def central(total: Value, one: Value, other: Value) -> Value:
            product = write.fmul(write.fmul(n, one), other)
            return write.fmul(write.fsub(as_float(total), product), number(1.0 / unit**2))

        return length, central(sxx, mx, mx), central(sxy, mx, my), central(syy, my, my)

    def each(ring: Value) -> None:
        begin, size = whole("begin", ring), whole("size", ring)
        c, s = (float_of("direction", function.add(function.times(ring, 2), axis)) for axis in (0, 1))
        price, straight = float_of("price", ring), is_set("only_free", ring)
        cc, ss, twice = write.fmul(c, c), write.fmul(s, s), write.fmul(write.fmul(number(2.0), c), s)
        jog = write.fmul(price, number(jog_price))
        free = write.fmul(write.select(straight, number(1.0), number(free_price)), price)
        for kind in range(KINDS):
            function.put(number(0.0), given["leave"], function.add(function.times(begin, KINDS), kind))

        def candidate(step: Value) -> None:
            step = function.add(step, 1)
            here = function.add(begin, step)
            last = whole("corner", here)
            within = function.least(step, window)
            none = ir.Constant(ir.IntType(1), 0)

            def wall(back: Value, ended: Value, *best: Value) -> Sequence[Value]:
                start = function.minus(function.minus(here, 1), back)
                length, xx, xy, yy = moments(whole("corner", start), last)
                cross = write.fmul(twice, xy)
                along = write.fadd(write.fsub(write.fmul(ss, xx), cross), write.fmul(cc, yy))
                across = write.fadd(write.fadd(write.fmul(cc, xx), cross), write.fmul(ss, yy))
                apart = write.fsub(xx, yy)
                four = write.fmul(write.fmul(number(4.0), xy), xy)
                double = root(write.fadd(write.fmul(apart, apart), four))
                loose = write.fdiv(write.fsub(write.fadd(xx, yy), double), number(2.0))
                n = as_float(length)
                share = write.select(
                    write.fcmp_ordered(">", n, number(enough)), root(write.fdiv(number(enough), n)), number(1.0)
                )
                prices = price, price, free
                new: list[Value] = []
                for kind, squares in enumerate((along, across, loose)):
                    cost = write.fadd(write.fmul(not_negative(squares), share), prices[kind])
                    if kind < KINDS - 1:
                        cost = write.select(straight, infinity, cost)
                    cost = write.select(ended, infinity, cost)
                    total = write.fadd(cost, float_of("leave", function.add(function.times(start, KINDS), kind)))
                    better = smaller(total, best[2 * kind])
                    new += [write.select(better, total, best[2 * kind]), write.select(better, back, best[2 * kind + 1])]
                # A corner that has to be may be at a wall's ends only.
                return [write.or_(ended, is_set("must", start)), *new]

            nothing = [infinity, function.word(0)] * KINDS
            _, *best = function.loop(within, wall, [none, *nothing])
            came = best[::2]
            for kind in range(KINDS):
                place = function.add(function.times(here, KINDS), kind)
                function.put(best[2 * kind], given["arrive"], place)
                function.put(best[2 * kind + 1], given["back"], place)
                least, by = None, function.word(0)
                for other in range(KINDS):
                    extra = jog if kind == other < KINDS - 1 else number(0.0)
                    total = write.fadd(came[other], extra)
                    if least is None:
                        least = total
                        continue
                    better = smaller(total, least)
                    least, by = write.select(better, total, least), write.select(better, function.word(other), by)
                function.put(least, given["leave"], place)
                function.put(by, given["before"], place)

        function.loop(function.minus(size, 1), candidate)

    function.loop(rings, each)
    function.end()


@cache
def kernel(**settings: float) -> Any:
    """Return the compiled function; None where nothing can be compiled.

    Args:
        settings: As of :func:`write_cheapest`.
    """
    try:
        from llvmlite import ir

        from geoseg.codegen import compiled

        module = ir.Module()
        write_cheapest(module, **settings)  # type: ignore[arg-type]
        (address,) = compiled(str(module), ("cheapest",)).values()
    except (ImportError, OSError, RuntimeError):  # not installed; no memory may be executed; LLVM does not know this
        return None
    pointers = [ctypes.c_void_p] * len(ARGUMENTS)
    return ctypes.CFUNCTYPE(None, *pointers, ctypes.c_int64, ctypes.c_int64)(address)


def cut(function: Any, arrays: dict[str, NDArray[Any]], rings: int, samples: int) -> None:
    """Call the compiled function.

    Args:
        function: What :func:`kernel` returned.
        arrays: :data:`ARGUMENTS` but for ``leave``, contiguous.
        rings: How many there are.
        samples: How many samples.
    """
    whole = {*("xy", "running", "corner", "begin", "size", "back", "before")}
    every = {**arrays, "leave": np.empty_like(arrays["arrive"])}
    kinds = {
        name: np.int64 if name in whole else bool if name in ("only_free", "must") else np.float64 for name in every
    }
    for name, array in every.items():
        if array.dtype != kinds[name] or not array.flags.c_contiguous:
            raise ValueError(f"{name} is {array.dtype}, contiguous: {array.flags.c_contiguous}")
    function(*(every[name].ctypes.data for name in ARGUMENTS), rings, samples)
