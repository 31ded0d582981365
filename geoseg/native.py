"""The kernels of :mod:`geoseg.kernels`, compiled for this processor, on torch's tensors and in torch's threads.

LLVM (through llvmlite) compiles them when the first network is made, in about half a second, for exactly the processor
that it runs on. In between torch computes with its own threads, which wait for a while at the end of each operation for
the next; threads of others would find the cores taken. So the kernels run in those, where torch's are OpenMP's.
"""

from __future__ import annotations

import ctypes
import platform
import struct
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from geoseg.codegen import compiled
from geoseg.kernels import CHUNK, CONV, DOUBLE, FIELDS, KINDS, POINTS, TABLES, Kind, Machine, module
from geoseg.pool_kernel import POOL_FIELDS
from geoseg.tiling import ceil_to

_AVX512, _AVX2, _NEON = Machine(16, 14, 2), Machine(8, 6, 2), Machine(4, 6, 4)
_AT_ONCE = ((1 << 14, 14), (1 << 16, 28))
"""Tiles taken at once, up to so many products of channels in and out: larger filters are read from further away, which
pays with more tiles."""
_MOST = 56


def machine() -> Machine | None:
    """Return what this processor multiplies at once; None when it is not known."""
    from llvmlite import binding

    if platform.machine().lower() in ("arm64", "aarch64"):
        return _NEON
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return None
    features = binding.get_host_cpu_features()
    if features.get("avx512f"):
        return _AVX512
    return _AVX2 if features.get("avx2") and features.get("fma") else None


@cache
def ready() -> Machine | None:
    """Return this processor when the kernels are compiled for it; None when they cannot be."""
    try:
        found = machine()
        if found is not None:
            _compiled(found)
    except (ImportError, OSError, RuntimeError):  # not installed; no memory may be executed; LLVM does not know it
        return None
    return found


def computes(layer: nn.Module) -> Kind | None:
    """Return the kernel that can compute a layer; None when there is none."""
    if not isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) or layer.groups != 1 or layer.dilation != (1, 1):
        return None
    if layer.in_channels % CHUNK or layer.out_channels % CHUNK or layer.padding != (1, 1):
        return None
    if isinstance(layer, nn.Conv2d):
        plain = layer.kernel_size == (3, 3) and layer.stride == (1, 1) and layer.padding_mode == "zeros"
        return CONV if plain else None
    sides = {((4, 4), (0, 0)), ((3, 3), (1, 1))}
    doubles = layer.stride == (2, 2) and (layer.kernel_size, layer.output_padding) in sides
    return DOUBLE if doubles else None


class Layer:
    """A layer on some rows of an image.

    Args:
        layer: One that :func:`computes` knows.
        relu: Whether nothing is to be negative.
        machine: The processor, as :func:`machine` returns it.
    """

    def __init__(self, layer: nn.Conv2d | nn.ConvTranspose2d, relu: bool, machine: Machine) -> None:
        kind = computes(layer)
        if kind is None:
            raise ValueError(f"no kernel computes {layer}")
        self._kind, self._machine = kind, machine
        self._kernel = _compiled(machine)[kind.name]
        self._channels, self._out = int(layer.in_channels), int(layer.out_channels)
        weight = layer.weight.detach()
        self._filters = packed(weight if kind is CONV else quartered(weight), kind, machine.panel)
        self._bias = torch.zeros(self._out) if layer.bias is None else layer.bias.detach().float().contiguous()
        self._zeros, self._nowhere = (torch.zeros(max(self._channels, self._out)) for _ in range(2))
        self._floor = struct.unpack("i", struct.pack("f", 0.0 if relu else float("-inf")))[0]

    def __call__(
        self, rows: Sequence[Tensor], top: bool, bottom: bool, addend: Sequence[Tensor] | None = None
    ) -> Tensor:
        """Return the rows whose neighbours are there; above the top and below the bottom of the image is zero.

        Args:
            rows: In pieces, from top to bottom, each ``(N, channels, rows, width)`` float32, channels last.
            top: Whether the image begins with them.
            bottom: Whether it ends with them.
            addend: Pieces of what is added to the answer, of the same form as it.
        """
        kind = self._kind
        pieces = [_laid(piece) for piece in rows]
        count, _, _, width = pieces[0].shape
        height = sum(piece.shape[2] for piece in pieces)
        steps = height - kind.taps + 1 + (kind.taps // 2) * top + bottom
        high = steps if kind is CONV else 2 * (height - 1) + top + bottom
        wide = width * kind.apart
        answer = torch.empty((count, self._out, high, wide), memory_format=torch.channels_last)
        across = -(-(wide if kind is CONV else width + 1) // kind.outputs)
        tiles = across * -(-steps // kind.outputs)
        threads = torch.get_num_threads()
        at_once = self._at_once(tiles, threads)
        depth = self._channels + self._out * kind.apart**2
        size = TABLES + POINTS * at_once * depth
        memory = torch.empty(size * threads)
        for number in range(count if tiles else 0):
            counters = (ctypes.c_int64 * 2)(0, 0)
            lines = _addresses(pieces, number)
            added = (ctypes.c_int64 * high)(*[self._zeros.data_ptr()] * high)
            if addend is not None:
                added = _addresses([_laid(piece) for piece in addend], number)
            given = {
                "given": ctypes.addressof(lines), "answer": answer[number].data_ptr(),
                "addend": ctypes.addressof(added), "filters": self._filters.data_ptr(),
                "bias": self._bias.data_ptr(), "zeros": self._zeros.data_ptr(), "nowhere": self._nowhere.data_ptr(),
                "group": ctypes.addressof(counters), "ticket": ctypes.addressof(counters) + 8,
                "memory": memory.data_ptr(), "size": size, "height": height, "width": width, "high": high,
                "wide": wide, "above": int(top), "across": across, "tiles": tiles, "groups": -(-tiles // at_once),
                "at_once": at_once, "channels": self._channels, "out": self._out, "row": wide * self._out,
                "aside": 0 if addend is None else self._out, "floor": self._floor,
            }  # fmt: skip
            _run(self._kernel, FIELDS, given, threads)
        return answer

    def _at_once(self, tiles: int, threads: int) -> int:
        """Return how many tiles to take at once: what the cache likes, shared out evenly among the threads."""
        products = self._channels * self._out * self._kind.apart**2
        most = next((count for limit, count in _AT_ONCE if products <= limit), _MOST)
        rounds = max(-(-tiles // (most * threads)), 1)
        return ceil_to(max(-(-tiles // (rounds * threads)), 1), self._machine.rows)


def pooled(rows: Sequence[Tensor], machine: Machine) -> Tensor:
    """Return the largest of each 2 × 2 values of an even number of rows in pieces, of channels in multiples of 16."""
    pieces = [_laid(piece) for piece in rows]
    count, channels, _, width = pieces[0].shape
    high, wide = sum(piece.shape[2] for piece in pieces) // 2, width // 2
    answer = torch.empty((count, channels, high, wide), memory_format=torch.channels_last)
    for number in range(count):
        lines = _addresses(pieces, number)
        counter = ctypes.c_int64(0)
        given = {
            "given": ctypes.addressof(lines), "answer": answer[number].data_ptr(),
            "group": ctypes.addressof(counter), "high": high, "wide": wide, "channels": channels,
        }  # fmt: skip
        _run(_compiled(machine)["pool"], POOL_FIELDS, given, torch.get_num_threads())
    return answer


def packed(weight: Tensor, kind: Kind, panel: int) -> Tensor:
    """Return filters ``(out, in, taps, taps)`` as a kernel reads them: taken apart, point by point.

    Each point has the filters' values in panels of so many channels out, ``(in, panel)``; what is left in panels of
    16.
    """
    out, channels = weight.shape[:2]
    side = torch.tensor(kind.filter, dtype=torch.float64)
    both = torch.kron(side, side).float()
    found = torch.empty((POINTS, out * channels))
    full = out - out % panel
    for start, stop, across in ((0, full, panel), (full, out, CHUNK)):
        if start < stop:
            taps = weight[start:stop].float().reshape(-1, across, channels, kind.taps**2).permute(3, 0, 2, 1)
            torch.mm(both, taps.reshape(kind.taps**2, -1), out=found[:, start * channels : stop * channels])
    return found


def quartered(weight: Tensor) -> Tensor:
    """Return a transposed convolution's filters, ``(in, out, k, k)``, as four of 2 × 2, ``(4 · out, in, 2, 2)``.

    Of stride two and padding one, its pixels ``2 i + 1`` and ``2 i + 2`` come from pixels ``i`` and ``i + 1``: the
    first from taps 2 and 0, the second from taps 3 and 1.
    """
    filled = nn.functional.pad(weight, (0, 4 - weight.shape[3], 0, 4 - weight.shape[2])).transpose(0, 1)
    taps = ([2, 0], [3, 1])
    return torch.cat([filled[:, :, down][:, :, :, right] for down in taps for right in taps])


def _laid(piece: Tensor) -> Tensor:
    """Return a tensor whose pixels lie one after the other in each row, with their channels together."""
    apart = piece.stride(3) == piece.shape[1] or piece.shape[3] == 1
    return piece if piece.stride(1) == 1 and apart else piece.contiguous(memory_format=torch.channels_last)


def _addresses(pieces: Sequence[Tensor], number: int) -> Any:
    """Return a table of the addresses of the rows of an image."""
    found: list[int] = []
    for piece in pieces:
        start, step = piece[number].data_ptr(), piece.stride(2) * piece.element_size()
        found += range(start, start + step * piece.shape[2], step)
    return (ctypes.c_int64 * len(found))(*found)


@cache
def _compiled(machine: Machine) -> dict[str, int]:
    """Return the addresses of the kernels."""
    from llvmlite import binding

    features = ""
    if machine.lanes > _NEON.lanes:
        # Some processors are better off with vectors of half the length in programs that use few; this one uses many.
        features = f"{binding.get_host_cpu_features().flatten()},-prefer-256-bit"
    return compiled(module(machine), [*(kind.name for kind in KINDS), "pool"], features)


def _run(kernel: int, names: Sequence[str], given: dict[str, int], threads: int) -> None:
    """Call a kernel with what its fields are."""
    fields = (ctypes.c_int64 * len(names))(*[given[name] for name in names])
    _in_threads(kernel, ctypes.addressof(fields), threads)


def _in_threads(kernel: int, fields: int, threads: int) -> None:
    """Call a kernel in so many threads at once."""
    parallel = _openmp()
    if parallel is not None:
        parallel(kernel, fields, threads, 0)
        return
    function = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(kernel)
    others = [_pool().submit(function, fields) for _ in range(threads - 1)]
    function(fields)
    for other in others:
        other.result()


@cache
def _pool() -> ThreadPoolExecutor:
    """Return threads of our own."""
    return ThreadPoolExecutor(thread_name_prefix="kernels")


@cache
def _openmp() -> Any:
    """Return what runs a function in torch's own threads; None where they are not OpenMP's."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        return None
    loaded = {line.split(maxsplit=5)[5].strip() for line in maps.read_text().splitlines() if "omp" in line}
    ours = str(Path(torch.__file__).parent)
    for path in sorted((path for path in loaded if ".so" in path), key=lambda path: not path.startswith(ours)):
        try:
            parallel = ctypes.CDLL(path).GOMP_parallel
        except (OSError, AttributeError):  # replaced since it was loaded; or another library with such a name
            continue
        else:
            parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
            parallel.restype = None
            return parallel
    return None
