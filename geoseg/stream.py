"""The network over rows: an image of any height passes through once, and memory depends on its width only.

A window that is predicted by itself needs a halo, whose pixels are computed several times over; the larger the window,
the smaller that share, but the more memory. Here the rows of a window enter in strips, each layer keeps just the rows
that the next strip still needs, and answers come out as soon as nothing below can change them. Every row is computed
once (but for a few that are cheaper to compute again than to copy), by the same arithmetic as for the whole window, so
the result is that of one forward pass to float noise.

The first convolution of a decoder sees channels from below beside those of the skip connection. It is the sum of two
convolutions, and the skip's is computed where the skip comes from: what waits for the deeper levels then has a half or
a quarter of the channels.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from torch import nn

from geoseg.errors import ModelError
from geoseg.layers import Engine, Rows
from geoseg.tiling import ALIGN
from geoseg.unet import ConvRelu, UNet11, UNet16

COARSE = 2
"""Level of the encoder, 0 for the finest, from which each convolution keeps rows of its own."""


class _Pieces:
    """Rows that wait, in the pieces that they came in, counted from the top of the image."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._pieces: list[Rows] = []
        self._settled = 0
        self.start = 0
        self.stop = 0

    def add(self, rows: Rows) -> None:
        """Put rows below those that wait."""
        self._pieces.append(rows)
        self.stop += self._engine.height(rows)

    def get(self, start: int, stop: int) -> Rows:
        """Return rows ``start`` to ``stop - 1``, which go on waiting."""
        engine, at = self._engine, self.start
        found: list[Rows] = []
        for piece in self._pieces:
            height = engine.height(piece)
            first, last = max(start - at, 0), min(stop - at, height)
            if first < last:
                found.append(piece if last - first == height else engine.cut(piece, first, last))
            at += height
        return found[0] if len(found) == 1 else engine.stack(found)

    def drop(self, start: int) -> None:
        """Forget all rows above ``start``; the others outlast what comes."""
        engine = self._engine
        while self._pieces and self.start + (height := engine.height(self._pieces[0])) <= start:
            del self._pieces[0]
            self._settled = max(self._settled - 1, 0)
            self.start += height
        if self._pieces and self.start < start:
            head = self._pieces[0]
            self._pieces[0] = engine.cut(head, start - self.start, engine.height(head))
            self._settled = 0
            self.start = start
        for index in range(self._settled, len(self._pieces)):
            self._pieces[index] = engine.keep(self._pieces[index])
        self._settled = len(self._pieces)


class _Padded:
    """Convolutions one after the other, on rows whose margins are there or, outside the image, zero."""

    def __init__(self, engine: Engine, layers: Sequence[tuple[nn.Conv2d, bool]]) -> None:
        self._layers = [engine.conv(layer, relu) for layer, relu in layers]
        self.margin = sum(layer.kernel_size[0] // 2 for layer, _ in layers)

    def __call__(self, rows: Rows, top: bool, bottom: bool) -> Rows:
        for layer in self._layers:
            rows = layer(rows, top, bottom)
        return rows

    def span(self, start: int, stop: int, bottom: bool) -> tuple[int, int]:
        """Return which rows come out when rows ``start`` to ``stop - 1`` go in; row 0 is the top."""
        return start + self.margin * (start > 0), stop - self.margin * (not bottom)


class Step(Protocol):
    """A part of the network as rows pass through it."""

    def push(self, rows: Rows | None, last: bool) -> Rows | None:
        """Take further rows, None for none, and return those that are complete; after the last, all the rest."""


class _Segment(ABC):
    """A step that looks at the rows around: those that the next strip looks at, too, wait here."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._input = _Pieces(engine)
        self._done = 0

    @abstractmethod
    def span(self, start: int, stop: int, bottom: bool) -> tuple[int, int]:
        """Return which rows come out when rows ``start`` to ``stop - 1`` go in."""

    @abstractmethod
    def needed(self, row: int) -> int:
        """Return the first row to go in for ``row`` to come out."""

    @abstractmethod
    def compute(self, rows: Rows, start: int, stop: int, bottom: bool) -> Rows:
        """Return what comes out for rows ``start`` to ``stop - 1``."""

    def push(self, rows: Rows | None, last: bool) -> Rows | None:
        """See :class:`Step`."""
        given = self._input
        if rows is not None:
            given.add(rows)
        start, stop = given.start, given.stop
        first, end = self.span(start, stop, last)
        if stop <= start or end <= self._done:
            given.drop(start)
            return None
        answer = self.compute(given.get(start, stop), start, stop, last)
        if self._done > first:
            answer = self._engine.cut(answer, self._done - first, end - first)
        self._done = end
        given.drop(max(self.needed(end), 0))
        return answer


class _Convs(_Segment):
    """Convolutions that keep the size."""

    def __init__(self, engine: Engine, layers: Sequence[tuple[nn.Conv2d, bool]]) -> None:
        super().__init__(engine)
        self._apply = _Padded(engine, layers)

    def span(self, start: int, stop: int, bottom: bool) -> tuple[int, int]:
        return self._apply.span(start, stop, bottom)

    def needed(self, row: int) -> int:
        return row - self._apply.margin

    def compute(self, rows: Rows, start: int, stop: int, bottom: bool) -> Rows:
        return self._apply(rows, start == 0, bottom)


class _Double(_Segment):
    """Upsampling by two."""

    def __init__(self, engine: Engine, up: nn.Module) -> None:
        super().__init__(engine)
        self._apply = engine.double(up)

    def span(self, start: int, stop: int, bottom: bool) -> tuple[int, int]:
        # The outermost two rows see beyond the rows that they come from.
        return (2 * start + 1 if start else 0), (2 * stop if bottom else 2 * stop - 1)

    def needed(self, row: int) -> int:
        return (row - 1) // 2

    def compute(self, rows: Rows, start: int, stop: int, bottom: bool) -> Rows:
        return self._apply(rows, start == 0, bottom)


class _Joined(_Segment):
    """A convolution whose answer is added to what came over the skip connection."""

    def __init__(self, engine: Engine, conv: nn.Conv2d, skip: _Pieces) -> None:
        super().__init__(engine)
        self._apply = engine.conv_added(conv)
        self._margin = conv.kernel_size[0] // 2
        self._skip = skip

    def span(self, start: int, stop: int, bottom: bool) -> tuple[int, int]:
        return start + self._margin * (start > 0), stop - self._margin * (not bottom)

    def needed(self, row: int) -> int:
        return row - self._margin

    def compute(self, rows: Rows, start: int, stop: int, bottom: bool) -> Rows:
        first, end = self.span(start, stop, bottom)
        both = self._apply(rows, self._skip.get(first, end), start == 0, bottom)
        self._skip.drop(end if end > self._margin else 0)
        return both


class _Level(_Segment):
    """A level of the encoder: its convolutions, the skip connection, and the pooling that leads to the next."""

    def __init__(self, engine: Engine, convs: Sequence[nn.Conv2d], skip: _Pieces, half: nn.Conv2d | None) -> None:
        super().__init__(engine)
        self._convs = _Padded(engine, [(conv, True) for conv in convs])
        self._half = _Padded(engine, [] if half is None else [(half, False)])
        self._skip = skip

    def span(self, start: int, stop: int, bottom: bool) -> tuple[int, int]:
        first, end = self._convs.span(start, stop, bottom)
        return max(first // 2, self._done), end // 2

    def needed(self, row: int) -> int:
        # Of the convolutions' rows both the pooling and the skip's own convolution want some again; poolings begin
        # at an even row.
        wanted = min(2 * row, self._skip.stop - self._half.margin)
        return wanted - wanted % 2 - self._convs.margin

    def compute(self, rows: Rows, start: int, stop: int, bottom: bool) -> Rows:
        engine = self._engine
        first, end = self._convs.span(start, stop, bottom)
        values = self._convs(rows, start == 0, bottom)
        begin = max(self._skip.stop - self._half.margin, first)
        head, tail = self._half.span(begin, end, bottom)
        if tail > self._skip.stop:
            half = self._half(engine.cut(values, begin - first, end - first), begin == 0, bottom)
            self._skip.add(engine.cut(half, self._skip.stop - head, tail - head))
            self._skip.drop(self._skip.start)
        return engine.pool(engine.cut(values, 2 * self._done - first, end - end % 2 - first))


class _Beside:
    """Rows from the deeper levels beside those of the skip connection."""

    def __init__(self, engine: Engine, skip: _Pieces) -> None:
        self._engine, self._skip = engine, skip

    def push(self, rows: Rows | None, last: bool) -> Rows | None:
        """See :class:`Step`."""
        if rows is None:
            return None
        start = self._skip.start
        stop = start + self._engine.height(rows)
        both = self._engine.beside(rows, self._skip.get(start, stop))
        self._skip.drop(stop)
        return both


class _Chain:
    """Steps one after the other."""

    def __init__(self, steps: Sequence[Step]) -> None:
        self._steps = steps

    def push(self, rows: Rows | None, last: bool) -> Rows | None:
        """See :class:`Step`."""
        for step in self._steps:
            rows = step.push(rows, last)
        return rows


class _Thin:
    """Steps that take few rows at a time: what one of them answers is in the cache when the next looks at it.

    Args:
        engine: Who says how few.
        steps: One after the other.
        level: How many times the rows are halved on their way to the last of them.
    """

    def __init__(self, engine: Engine, steps: Sequence[Step], level: int = 0) -> None:
        self._engine, self._steps, self._level = engine, _Chain(steps), level

    def push(self, rows: Rows | None, last: bool) -> Rows | None:
        """See :class:`Step`."""
        if rows is None:
            return self._steps.push(None, last)
        engine = self._engine
        height, some = engine.height(rows), engine.thin(rows) << self._level
        found = []
        for start in range(0, height, some):
            stop = min(start + some, height)
            part = self._steps.push(engine.cut(rows, start, stop), last and stop == height)
            if part is not None:
                found.append(part)
        return engine.stack(found) if found else None


class Network:
    """A network's layers, as an engine holds them; :meth:`stream` passes an image through.

    Args:
        net: UNet11 or UNet16.
        engine: Who computes.

    Raises:
        ModelError: The network is neither.
    """

    def __init__(self, net: nn.Module, engine: Engine) -> None:
        if not isinstance(net, UNet11 | UNet16):
            raise ModelError(f"{type(net).__name__} cannot be run over rows: only UNet11 and UNet16 can")
        self._engine = engine
        self._levels: list[list[nn.Conv2d]] = [[]]
        for layer in net.encoder:
            if isinstance(layer, nn.MaxPool2d):
                self._levels.append([])
            elif isinstance(layer, nn.Conv2d):
                self._levels[-1].append(layer)
        self._levels.pop()
        self._center: Any = net.center
        self._final: Any = net.final
        self._decoders: list[Any] = [net.dec1, net.dec2, net.dec3, net.dec4, net.dec5]
        # Decoder → its first convolution in two halves, of what comes from below and of the skip connection.
        self._halves = [
            _halves(_first(decoder), convs[-1].out_channels)
            for decoder, convs in zip(self._decoders, self._levels, strict=True)
        ]

    def stream(self) -> Step:
        """Return the network ready to take one image.

        Its ``push`` takes the next rows of the normalised image, ``(N, 3, rows, width)``, and returns those logits,
        from the top, that no further rows can change. All rows together and the width are multiples of 32.
        """
        engine = self._engine
        down: Step = _Chain([])
        up: list[Step] = []
        for number, convs in enumerate(self._levels):
            decoder, (below, aside) = self._decoders[number], self._halves[number]
            skip, half = _Pieces(engine), True
            if isinstance(decoder, ConvRelu):
                after: list[Step] = [_Joined(engine, below, skip), _Convs(engine, [(self._final, False)])]
            elif isinstance(decoder.block[0], ConvRelu):
                after = [_Joined(engine, below, skip), _Double(engine, decoder.block[1])]
            else:
                # Upsampling comes before the convolution: half of its answer would wait at twice the resolution.
                after, half = [_Beside(engine, skip), *_block(engine, decoder)], False
            # Where a strip has few rows, what the convolutions would compute again is more than what copying costs.
            many = number >= COARSE or not engine.copies
            alone: list[Step] = [_Convs(engine, [(conv, True)]) for conv in convs] if many else []
            level = _Level(engine, [] if alone else convs, skip, aside if half else None)
            down = _Thin(engine, [down, *alone, level], number)
            up = [*after, *up] if number != COARSE else [*after, _Thin(engine, up)]
        return _Chain([down, *_block(engine, self._center), *up])


def _block(engine: Engine, block: Any) -> Iterator[Step]:
    """Yield the steps of a decoder's block without a skip connection of its own."""
    first, *others = (layer for layer in block.block if not isinstance(layer, nn.ReLU))
    if isinstance(first, ConvRelu):
        yield _Convs(engine, [(first.conv, True)])
        yield _Double(engine, others[0])
    else:
        yield _Double(engine, first)
        yield _Convs(engine, [(layer.conv, True) for layer in others])


def _first(decoder: Any) -> nn.Conv2d:
    """Return the convolution that sees the skip connection first."""
    found = decoder if isinstance(decoder, ConvRelu) else next(x for x in decoder.block if isinstance(x, ConvRelu))
    return found.conv


def _halves(conv: nn.Conv2d, aside: int) -> tuple[nn.Conv2d, nn.Conv2d]:
    """Return two convolutions whose sum is ``conv``: of all but its last ``aside`` channels, and of those."""
    parts = []
    for begin, end in ((0, conv.in_channels - aside), (conv.in_channels - aside, conv.in_channels)):
        part = nn.Conv2d(end - begin, conv.out_channels, 3, padding=1, bias=begin == 0, device="meta")
        part.weight = nn.Parameter(conv.weight[:, begin:end].detach().clone(), requires_grad=False)
        if begin == 0 and conv.bias is not None:
            part.bias = nn.Parameter(conv.bias.detach(), requires_grad=False)
        parts.append(part)
    return parts[0], parts[1]


def strips(height: int, rows: int) -> Iterator[tuple[int, int]]:
    """Yield ``(start, stop)`` of strips of at most ``rows`` rows each, the last one shorter; all are multiples of 32.

    Where there are several and they are not too short for it, they are multiples of 96: halved again and again, they
    stay multiples of three or six, which fill tiles of six rows.
    """
    step = height if height <= rows else rows // (3 * ALIGN) * 3 * ALIGN or max(rows // ALIGN, 1) * ALIGN
    for start in range(0, height, step):
        yield start, min(start + step, height)
