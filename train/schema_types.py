"""What the sections of a recipe are made of: the base of a section, and types with their bounds. See `train.schema`."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

from shards.errors import SettingsError
from shards.scale import Scale


def off(value: object) -> object:
    """None for "none": TOML has no null."""
    return None if value == "none" else value


def one_or_more(value: object) -> object:
    """A list of one where a value stands alone."""
    return [value] if isinstance(value, (str, int, float)) and not isinstance(value, bool) else value


def text(value: object) -> object:
    """A whole number as text."""
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def reduced(text: str) -> str:
    """A scale in lowest terms."""
    try:
        return str(Scale.parse(text))
    except SettingsError as error:
        raise ValueError(str(error)) from None


Sequenced = Field(strict=False)  # TOML and JSON have lists where a frozen model keeps tuples
ScaleName = Annotated[
    str,
    Field(pattern=r"^[1-9][0-9]{0,4}(/[1-9][0-9]{0,4})?$"),
    BeforeValidator(text),  # `--set data.scales=1` reads as a number
    AfterValidator(reduced),  # 2/8 is the scale that is stored as 1/4
]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
NonNegative = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Size = Annotated[tuple[Annotated[int, Field(ge=8, le=65536)], Annotated[int, Field(ge=8, le=65536)]], Sequenced]
Range = Annotated[tuple[Annotated[float, Field(gt=0, le=16)], Annotated[float, Field(gt=0, le=16)]], Sequenced]
Triple = Annotated[tuple[float, float, float], Sequenced]


class Section(BaseModel):
    """Base of every part of a recipe: frozen, strict about types, closed to unknown keys."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)
