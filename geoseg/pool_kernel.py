"""The U-Net's pooling, in LLVM's language."""

from __future__ import annotations

from llvmlite import ir

from geoseg.codegen import POINTER, WORD, Function, Value, Vectors

POOL_FIELDS = ("given", "answer", "group", "high", "wide", "channels")
"""What the kernel is given, 64 bits each.

``given`` is a table of the addresses of ``2 · high`` rows of ``2 · wide`` pixels, ``answer`` memory for ``high`` rows
of ``wide`` pixels, all of ``channels``. ``group`` is a counter that starts at 0.
"""


def write_pool(module: ir.Module, lanes: int) -> None:
    """Write the kernel ``pool``: the largest of each 2 × 2 values; not a number stays that."""
    function = Function(module, "pool", [POINTER])
    vectors = Vectors(function, lanes)
    (fields,) = function.arguments
    given = {
        name: function.item(fields, number, POINTER if number < POOL_FIELDS.index("high") else WORD)
        for number, name in enumerate(POOL_FIELDS)
    }
    channels = given["channels"]

    def row(number: Value) -> None:
        both = [
            function.item(given["given"], function.add(function.times(number, 2), down), POINTER) for down in (0, 1)
        ]
        answer = function.at(given["answer"], function.times(number, given["wide"], channels))

        def pixel(column: Value) -> None:
            left = function.times(column, 2, channels)
            starts = [function.at(start, left, right) for start in both for right in (0, channels)]
            target = function.at(answer, function.times(column, channels))

            def some(channel: Value) -> None:
                first, *others = (vectors.load(function.at(start, channel)) for start in starts)
                for other in others:
                    first = vectors.maximum(first, other)
                vectors.store(first, function.at(target, channel))

            function.loop(channels, some, step=lanes)

        function.loop(given["wide"], pixel)

    function.until(given["group"], given["high"], row)
    function.end()
