"""What a model's card says about pixel values and classes, as numbers to compute with. Needs no torch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from geoseg.errors import ModelError, SettingError

if TYPE_CHECKING:
    from geoseg.card import ModelCard


@dataclass(frozen=True)
class Scaling:
    """How stored pixel values become what the network was trained on."""

    low: float
    """Stored value that means 0."""
    high: float
    """Stored value that means 1."""
    mean: tuple[float, float, float]
    """Mean of each band on the [0, 1] scale."""
    std: tuple[float, float, float]
    """Standard deviation of each band on the [0, 1] scale."""

    def __post_init__(self) -> None:
        if not -math.inf < self.low < self.high < math.inf:
            raise SettingError(f"value range {self.low:g} … {self.high:g}: both must be finite, the second the larger")

    @classmethod
    def of(cls, card: ModelCard, dtype: str, value_range: tuple[float, float] | None = None) -> Scaling:
        """Take the range from the option, else from the card.

        Raises:
            SettingError: Neither says what the values of ``dtype`` mean.
        """
        chosen = value_range or card.value_range.get(dtype)
        if chosen is None:
            known = ", ".join(sorted(card.value_range)) or "no type"
            raise SettingError(
                f"the imagery is {dtype}, and model {card.name!r} knows only {known}: say which stored values "
                "mean black and white, for example --range 0,10000"
            )
        low, high = chosen
        red, green, blue = zip(card.mean, card.std, strict=True)
        mean, std = (red[0], green[0], blue[0]), (red[1], green[1], blue[1])
        return cls(float(low), float(high), mean, std)

    def unit(self, values: NDArray[np.generic]) -> NDArray[np.float32]:
        """Return stored values on the [0, 1] scale, clipped, float32, same shape."""
        scaled = (values.astype(np.float32) - self.low) / (self.high - self.low)
        return np.clip(scaled, 0, 1, out=scaled)


def building_class(card: ModelCard) -> int:
    """Return which channel of a model is the building class: the only one, or the one named ``building``.

    Raises:
        ModelError: Several classes and none is called so.
    """
    if card.num_classes == 1:
        return 0
    for index, name in enumerate(card.classes):
        if name.lower().rstrip("s") == "building":
            return index
    raise ModelError(
        f"model {card.name!r} has {card.num_classes} classes ({', '.join(card.classes) or 'unnamed'}) and none is "
        "called 'building'; name the classes when importing it"
    )
