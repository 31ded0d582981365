"""Functions written in LLVM's language: counted loops, addresses, vectors of floats.

What :mod:`geoseg.kernels` is written with; llvmlite's builder is underneath. Integers are of 64 bits, numbers float32,
and pointers have no type.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from llvmlite import ir

WORD = ir.IntType(64)
INDEX = ir.IntType(32)
FLOAT = ir.FloatType()
POINTER = ir.PointerType()

Value = Any
"""A value that the function computes, or a Python number that it contains."""


class Function:
    """A function while it is being written, one instruction after the other.

    Args:
        module: Where it belongs.
        name: Its name.
        kinds: Of its arguments, :data:`WORD` or :data:`POINTER`; no two pointers lead to the same memory.
    """

    def __init__(self, module: ir.Module, name: str, kinds: Sequence[ir.Type]) -> None:
        self.module = module
        self.it = ir.Function(module, ir.FunctionType(ir.VoidType(), kinds), name)
        for argument in self.it.args:
            if argument.type == POINTER:
                argument.add_attribute("noalias")
        self.write = ir.IRBuilder(self.it.append_basic_block())

    @property
    def arguments(self) -> Sequence[Value]:
        """What it is called with."""
        return self.it.args

    def word(self, value: Value) -> Value:
        """Return a number as the function has it."""
        return ir.Constant(WORD, value) if isinstance(value, int) else value

    def add(self, *terms: Value) -> Value:
        """Return the sum of integers."""
        first, *others = map(self.word, terms)
        for other in others:
            first = self.write.add(first, other)
        return first

    def minus(self, first: Value, second: Value) -> Value:
        """Return the difference of integers."""
        return self.write.sub(self.word(first), self.word(second))

    def times(self, *factors: Value) -> Value:
        """Return the product of integers."""
        first, *others = map(self.word, factors)
        for other in others:
            first = self.write.mul(first, other)
        return first

    def least(self, first: Value, second: Value) -> Value:
        """Return the smaller of two integers."""
        first, second = self.word(first), self.word(second)
        return self.write.select(self.write.icmp_signed("<", first, second), first, second)

    def within(self, value: Value, end: Value) -> Value:
        """Say whether an integer is one of ``0 … end - 1``."""
        return self.write.icmp_unsigned("<", self.word(value), self.word(end))

    def at(self, pointer: Value, *places: Value, kind: ir.Type = FLOAT) -> Value:
        """Return the address of the item that many places behind."""
        return self.write.gep(pointer, [self.add(*places)], source_etype=kind)

    def item(self, pointer: Value, place: Value, kind: ir.Type = WORD) -> Value:
        """Return an item of a table."""
        return self.write.load(self.at(pointer, place, kind=kind), typ=kind)

    def put(self, value: Value, pointer: Value, place: Value) -> None:
        """Write an item of a table."""
        self.write.store(value, self.at(pointer, place, kind=value.type))

    def next(self, counter: Value) -> Value:
        """Return what a counter stands at, and put it one up; every thread gets another answer."""
        return self.write.atomic_rmw("add", counter, self.word(1), "monotonic")

    def loop(
        self, stop: Value, body: Callable[..., Iterable[Value] | None], carried: Sequence[Value] = (), step: Value = 1
    ) -> Sequence[Value]:
        """Do something for 0, ``step``, … below ``stop``.

        Args:
            stop: The end.
            body: Is given the number and what is carried from one turn to the next, and returns the new of it.
            carried: What the first turn is given.
            step: From one number to the next.

        Returns:
            What the last turn returned.
        """
        write, before = self.write, self.write.block
        head, turn, done = (self.it.append_basic_block() for _ in range(3))
        write.branch(head)
        write.position_at_end(head)
        number = write.phi(WORD)
        number.add_incoming(self.word(0), before)
        held = [write.phi(value.type) for value in carried]
        for value, phi in zip(carried, held, strict=True):
            phi.add_incoming(value, before)
        write.cbranch(write.icmp_signed("<", number, self.word(stop)), turn, done)
        write.position_at_end(turn)
        new = list(body(number, *held) or ())
        following = self.add(number, step)
        for value, phi in zip([following, *new], [number, *held], strict=True):
            phi.add_incoming(value, write.block)
        write.branch(head)
        write.position_at_end(done)
        return held

    def until(self, counter: Value, stop: Value, body: Callable[[Value], None]) -> None:
        """Do something for what a counter shared by all threads gives, as long as it is below ``stop``."""
        write = self.write
        head, turn, done = (self.it.append_basic_block() for _ in range(3))
        write.branch(head)
        write.position_at_end(head)
        number = self.next(counter)
        write.cbranch(write.icmp_signed("<", number, stop), turn, done)
        write.position_at_end(turn)
        body(number)
        write.branch(head)
        write.position_at_end(done)

    def call(self, function: Function, *given: Value) -> None:
        """Call another function of the module."""
        self.write.call(function.it, [self.word(value) for value in given])

    def end(self) -> None:
        """Write the end of the function."""
        self.write.ret_void()


class Vectors:
    """Vectors of floats in a function.

    Args:
        function: Where.
        lanes: Floats in a vector.
    """

    def __init__(self, function: Function, lanes: int) -> None:
        self._write = function.write
        self.lanes = lanes
        self.kind = ir.VectorType(FLOAT, lanes)
        self._fma, self._maximum = (
            function.module.globals.get(name)
            or ir.Function(function.module, ir.FunctionType(self.kind, [self.kind] * arguments), name)
            for name, arguments in ((f"llvm.fma.v{lanes}f32", 3), (f"llvm.maximum.v{lanes}f32", 2))
        )

    def load(self, pointer: Value) -> Value:
        """Return what lies there."""
        return self._write.load(pointer, typ=self.kind, align=4)

    def store(self, value: Value, pointer: Value) -> None:
        """Put it there."""
        self._write.store(value, pointer, align=4)

    def same(self, number: Value) -> Value:
        """Return a vector of one number, which the function has or Python knows."""
        if isinstance(number, int | float):
            return ir.Constant(self.kind, [float(number)] * self.lanes)
        nothing = ir.Constant(self.kind, ir.Undefined)
        first = self._write.insert_element(nothing, number, ir.Constant(INDEX, 0))
        return self._write.shuffle_vector(
            first, nothing, ir.Constant(ir.VectorType(INDEX, self.lanes), [0] * self.lanes)
        )

    def spread(self, pointer: Value) -> Value:
        """Return a vector of the one number that lies there."""
        return self.same(self._write.load(pointer, typ=FLOAT, align=4))

    def fma(self, first: Value, second: Value, third: Value) -> Value:
        """Return ``first · second + third``, rounded once."""
        return self._write.call(self._fma, [first, second, third])

    def add(self, first: Value, second: Value) -> Value:
        """Return the sum."""
        return self._write.fadd(first, second)

    def more(self, total: Value | None, factor: float, value: Value) -> Value:
        """Return ``total + factor · value``; a total of None is nothing yet."""
        if total is None:
            return value if factor == 1 else self._write.fmul(self.same(factor), value)
        if abs(factor) == 1:
            return self._write.fadd(total, value) if factor > 0 else self._write.fsub(total, value)
        return self.fma(self.same(factor), value, total)

    def largest(self, first: Value, second: Value) -> Value:
        """Return the larger one, lane by lane; the first where it is not a number, which the second always is."""
        return self._write.select(self._write.fcmp_unordered(">", first, second), first, second)

    def maximum(self, first: Value, second: Value) -> Value:
        """Return the larger one, lane by lane, and what is not a number where either is not."""
        return self._write.call(self._maximum, [first, second])


def compiled(text: str, names: Sequence[str], features: str = "") -> dict[str, int]:
    """Return the addresses of a module's functions, compiled for this processor.

    Args:
        text: The module.
        names: Of the functions.
        features: Of the processor, besides or against what its name stands for.

    Raises:
        OSError, RuntimeError: LLVM cannot, or the memory may not be executed.
    """
    from llvmlite import binding

    binding.initialize_native_target()
    binding.initialize_native_asmprinter()
    target = binding.Target.from_default_triple().create_target_machine(
        cpu=binding.get_host_cpu_name(), features=features, opt=3
    )
    engine = binding.create_mcjit_compiler(binding.parse_assembly(text), target)
    engine.finalize_object()
    _kept.append(engine)
    return {name: engine.get_function_address(name) for name in names}


_kept: list[Any] = []
"""What owns compiled code."""
