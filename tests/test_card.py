"""Model cards: what they take, what they refuse, and that JSON gives them back."""

from __future__ import annotations

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from geoseg.card import DataSource, ModelCard
from geoseg.errors import ModelError

CARD = ModelCard(name="narrow", arch="unet11", num_filters=1)


def test_defaults_are_the_papers():
    card = ModelCard(name="x", arch="unet11")
    assert (card.threshold, card.bands, card.classes) == (0.3, (1, 2, 3), ("building",))
    assert card.mean == (0.485, 0.456, 0.406)
    assert card.std == (0.229, 0.224, 0.225)
    assert card.value_range == {"uint8": (0.0, 255.0)}


texts = st.text(min_size=1, max_size=8)
numbers = st.floats(allow_nan=False, allow_infinity=False)


@given(
    num_filters=st.integers(1, 64),
    bands=st.tuples(*[st.integers(1, 12)] * 3),
    low=st.floats(-1e6, 1e6),
    span=st.floats(1, 1e6),
    mean=st.tuples(numbers, numbers, numbers),
    gsd_m=st.none() | st.floats(0.01, 100),
    threshold=st.floats(0.01, 0.99),
    classes=st.lists(texts, min_size=1, max_size=4, unique=True),
    training_data=st.lists(st.builds(DataSource, texts, texts, texts), max_size=2),
    metrics=st.dictionaries(texts, numbers, max_size=3),
    description=st.text(max_size=20),
)
def test_a_card_survives_json(low, span, classes, **fields):
    card = ModelCard(
        name="a-1.b_c",
        arch="unet16",
        is_deconv=True,
        num_classes=len(classes),
        classes=tuple(classes),
        value_range={"uint16": (low, low + span)},
        **fields,
    )
    again = ModelCard.from_json(card.to_json())
    assert again == card
    assert again.to_json() == card.to_json()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("name", ""),
        ("name", "../evil"),
        ("name", 3),
        ("arch", "unet12"),
        ("num_filters", 0),
        ("num_filters", 10**9),
        ("num_filters", True),
        ("num_classes", 1.0),
        ("is_deconv", True),  # unet11 has no choice
        ("is_deconv", 1),
        ("bands", (0, 1, 2)),
        ("bands", (1, 2)),
        ("bands", "123"),
        ("value_range", {"uint9": (0, 1)}),
        ("value_range", {"uint8": (255, 0)}),
        ("value_range", {"uint8": 255}),
        ("value_range", []),
        ("mean", (0.1, 0.2)),
        ("mean", (0.1, 0.2, float("nan"))),
        ("std", (0.1, 0.2, 0.0)),
        ("std", 1.0),
        ("gsd_m", 0),
        ("gsd_m", float("inf")),
        ("gsd_m", "0.3"),
        ("threshold", 0),
        ("threshold", 1),
        ("threshold", 10**400),
        ("classes", ("a", "b")),
        ("classes", ("",)),
        ("training_data", ({"name": "x"},)),
        ("training_data", ({"name": "x", "licence": "y", "source": "z", "more": 1},)),
        ("training_data", ("x",)),
        ("metrics", {"iou": "good"}),
        ("metrics", {1: 1.0}),
        ("description", None),
        ("halo", 33),
        ("halo", -32),
        ("taper", 3),
        ("taper", 2),  # without a halo
    ],
)
def test_a_bad_field_is_named(field, value):
    with pytest.raises(ModelError, match=field):
        dataclasses.replace(CARD, **{field: value})


def test_class_names_must_be_as_many_as_classes_and_differ():
    with pytest.raises(ModelError, match="classes"):
        ModelCard(name="x", arch="unet11", num_classes=2, classes=("a", "a"))
    assert len(ModelCard(name="x", arch="unet11", num_classes=3).classes) == 3


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"name": "x", "arch": "unet11", "colour": 1}', "'colour'"),
        ('{"name": "x"}', "needs 'arch'"),
        ("[]", "not an object"),
        ("{", "not valid JSON"),
        ('{"threshold": NaN}', "NaN"),
        ("[" * 200_000, "not valid JSON"),
        ('{"name": "x", "arch": ["unet11"]}', "arch"),
        ('{"name": "x", "arch": "unet11", "threshold": 1e999}', "threshold"),
    ],
)
def test_bad_card_text_is_refused_with_its_origin(text, match):
    with pytest.raises(ModelError, match=match) as caught:
        ModelCard.from_json(text, "there.safetensors")
    assert "there.safetensors" in str(caught.value)
