"""How far tiled results lie from whole-image inference, for one model, image and many halos and tapers.

    python tests/benchmarks/halo.py IMAGE [--model NAME|PATH] [--size PX] [--cell PX]

Prints a row for each halo and taper: forward pixels per pixel, and the largest and mean difference of the 8-bit
probability from one forward pass over the whole image, in grey levels. The cheapest row whose largest difference is
below one grey level is what ``--halo auto`` should use; it belongs on the model's card (``halo``, ``taper``).
"""

from __future__ import annotations

import argparse
from itertools import product

import numpy as np

from geoseg.blend import blend
from geoseg.checkpoint import load_model
from geoseg.mosaic import open_mosaic
from geoseg.predict import Predictor, Scaling, whole_image
from geoseg.tiling import Rect, Tiling


def differences(
    predictor: Predictor, values: np.ndarray, valid: np.ndarray, scaling: Scaling, tiling: Tiling, whole: np.ndarray
) -> np.ndarray:
    """Return ``|tiled - whole|`` in grey levels, ``(H, W)``, zero where there is no data."""
    padded = tiling.padded
    pad = ((0, padded.row1 - tiling.shape[0]), (0, padded.col1 - tiling.shape[1]))
    stored = np.pad(values, ((0, 0), *pad), mode="reflect")
    known = np.pad(valid, pad, mode="reflect")
    windows = list(tiling.windows(tiling.extent))
    tiled = blend(tiling, tiling.extent, predictor.windows(stored, known, padded, windows, scaling))
    return np.abs(tiled - whole) * 255 * valid


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("image", nargs="+")
    parser.add_argument("--model")
    parser.add_argument("--size", type=int, default=2048, help="side of the square at the image's centre")
    parser.add_argument("--cell", type=int, default=512, help="lattice cell; smaller ones have more seams to measure")
    parser.add_argument("--halos", default="32,64,96,128,160,192")
    parser.add_argument("--tapers", default="0,32,64")
    parser.add_argument("--precision", default="fp32")
    given = parser.parse_args()
    model = load_model(given.model)
    predictor = Predictor.of(model, precision=given.precision)
    print(f"model {model.card.name}, reach {model.reach.before}/{model.reach.after} px, cell {given.cell} px")
    print("image | halo | taper | forward/pixel at cell 1536 | max grey | mean grey | share ≥ 1")
    for name in given.image:
        mosaic, _ = open_mosaic([name])
        rows, cols = mosaic.shape
        side = (min(given.size, rows), min(given.size, cols))
        row, col = (rows - side[0]) // 2, (cols - side[1]) // 2
        pixels = mosaic.read(Rect(row, col, row + side[0], col + side[1]))
        scaling = Scaling.of(model.card, str(mosaic.dtype), None)
        whole = whole_image(predictor, pixels.values, pixels.valid, scaling)
        mean = f"{whole.mean():.3f} ± {whole.std():.3f}"
        print(f"{name.rsplit('/', 1)[-1]}: {side[1]} × {side[0]} px, whole-image probability {mean}")
        for halo, taper in product(map(int, given.halos.split(",")), map(int, given.tapers.split(","))):
            if taper > 2 * halo:
                continue
            tiling = Tiling(side, given.cell, halo, taper, given.cell)
            away = differences(predictor, pixels.values, pixels.valid, scaling, tiling, whole)
            ratio = Tiling((30720, 30720), 1536, halo, taper, 3072).forward_ratio()
            print(
                f"{name.rsplit('/', 1)[-1]} | {halo} | {taper} | {ratio:.2f} | {away.max():.2e} | {away.mean():.2e} | "
                f"{(away >= 1).mean():.2e}",
                flush=True,
            )


if __name__ == "__main__":
    main()
