"""What every section of a recipe shares: frozen, no unknown keys, all problems told at once."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

Fraction: TypeAlias = Annotated[float, Field(gt=0.0, lt=1.0)]
Count: TypeAlias = Annotated[int, Field(ge=1)]
Problems: TypeAlias = Iterator[tuple[str, str]]


class Section(BaseModel):
    """Refuses unknown keys, cannot be changed after it is made, and tells all its problems at once."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    def _problems(self) -> Problems:
        """Yield (field, text) for each value that is right by itself and wrong beside another one."""
        yield from ()

    @model_validator(mode="after")
    def _has_no_problem(self) -> Self:
        problems = tuple(self._problems())
        if problems:
            text = "; ".join(f"{place}: {text}" for place, text in problems)
            raise PydanticCustomError("recipe", "{text}", {"text": text, "problems": problems})
        return self


def repeats(place: str, values: tuple[object, ...]) -> Problems:
    """Yield a problem for each value that stands twice."""
    for index, value in enumerate(values):
        if value in values[:index]:
            yield place, f"{value!r} is given twice"


def empty_or_repeats(place: str, values: tuple[object, ...]) -> Problems:
    """Yield a problem for each value that stands twice, and one where there is none."""
    if not values:
        yield place, "should hold at least one value, got an empty list"
    yield from repeats(place, values)
