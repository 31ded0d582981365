"""Noise and tree crowns, made once per city."""

from __future__ import annotations

from functools import lru_cache
from math import ceil, cos, pi, sin

import numpy as np

from geoseg.sample.city import Array, City, look_of

CROWNS_M = np.geomspace(0.8, 6.0, 20)
"""Radii of the crowns that there are, metres."""


@lru_cache(maxsize=4)
def textures_of(seed: int) -> dict[str, Array]:
    """Periodic noise of several grains, mean 0 and deviation 1; the periods share no divisor."""
    grains = (("fine", 499, 0.45), ("mid", 613, 1.0), ("coarse", 761, 1.7), ("grain", 997, 0.0))
    out = {}
    for k, (name, n, slope) in enumerate(grains):
        rng = np.random.default_rng([seed, 2, k])
        f = np.hypot(np.fft.fftfreq(n)[:, None], np.fft.rfftfreq(n)[None, :])
        gain = 1 / np.maximum(f, 1 / n) ** slope
        gain[0, 0] = 0
        noise = np.fft.irfft2(np.fft.rfft2(rng.standard_normal((n, n))) * gain, (n, n))
        out[name] = (noise / noise.std()).astype(np.float32)
    return out


@lru_cache(maxsize=4)
def stamps_of(city: City) -> list[tuple[Array, Array]]:
    """Crowns: three per radius (two with leaves, one without), opacity and tone each."""
    rng = np.random.default_rng([city.seed, 3])
    sun = look_of(city.seed).sun
    return [_crown(rng, radius / city.gsd, sun, bare) for radius in CROWNS_M for bare in (False, False, True)]


def _crown(rng: np.random.Generator, radius: float, sun: tuple[float, float], bare: bool) -> tuple[Array, Array]:
    n = ceil(radius * 1.4) + 1
    y, x = np.mgrid[-n : n + 1, -n : n + 1].astype(np.float32)
    height = np.zeros(x.shape, np.float32)
    for k in range(max(6, int(radius * 1.6))):
        turn, away = rng.uniform(0, 2 * pi), radius * 0.75 * rng.uniform() ** 0.5
        size = radius * rng.uniform(0.25, 0.5)
        if k == 0:
            away, size = 0, radius * 0.7
        d2 = ((x - away * cos(turn)) ** 2 + (y - away * sin(turn)) ** 2) / size**2
        bump = np.sqrt(np.maximum(1 - d2, 0)) * size + np.where(d2 < 1, 0.5 * (radius - away), 0)
        height = np.maximum(height, bump)
    rough = blur(rng.standard_normal((1, *x.shape)).astype(np.float32), 0.25)[0]
    inside = (height + rough * radius * 0.16 > 0.12 * radius).astype(np.float32)
    gy, gx = np.gradient(blur(height[None], 0.2)[0])
    slope = np.clip(gx * sun[0] + gy * sun[1], -1.3, 1.3)
    dome = (x * sun[0] + y * sun[1]) / radius
    tone = 0.95 - 0.24 * slope + 0.16 * dome + 0.22 * rough
    alpha = blur(inside[None], 0.2)[0] * (np.clip(0.45 + 0.35 * rough, 0.1, 0.8) if bare else 0.97)
    return alpha.astype(np.float32), np.clip(tone, 0.3, 1.6).astype(np.float32)


def blur(image: Array, side: float) -> Array:
    """Blur (C, H, W) with weights (side, 1 - 2 side, side) both ways; the rim is worthless."""
    for axis in (1, 2):
        near = np.roll(image, 1, axis)
        near += np.roll(image, -1, axis)
        near *= np.float32(side)
        image = image * np.float32(1 - 2 * side)
        image += near
    return image
