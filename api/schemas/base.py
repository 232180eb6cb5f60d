"""What all wire types of ``/v1`` are made of. Ids are integers; times are RFC 3339 in UTC; sizes are bytes."""

from __future__ import annotations

from typing import Annotated, Any, Generic, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from mhs_ray.domain.errors import Fault, InvalidInputError

T = TypeVar("T")
MAX_ROW_ID = (1 << 53) - 1
RowId = Annotated[int, Field(ge=1, le=MAX_ROW_ID)]


def storable(text: str | None) -> str | None:
    """Return `text`. Raises ValueError for what a database cannot keep: NUL characters and halves of characters."""
    if text is not None and ("\x00" in text or any("\ud800" <= c <= "\udfff" for c in text)):
        raise ValueError("NUL characters and lone surrogates cannot be part of a text")
    return text


Text = Annotated[str, AfterValidator(storable)]


class Wire(BaseModel):
    """Answers are read from the domain's own values."""

    model_config = ConfigDict(from_attributes=True)


class Body(BaseModel):
    """Requests take no unknown keys: a misspelt one is a fault."""

    model_config = ConfigDict(extra="forbid")


class PageOut(Wire, Generic[T]):
    """A piece of a list, newest first."""

    items: list[T]
    next_cursor: str | None = Field(description="give it back as `cursor` for the next piece; null at the end")


def refuse_null(values: dict[str, Any], *names: str) -> None:
    """Raises InvalidInputError for fields of a change that cannot be null."""
    if missing := [name for name in names if name in values and values[name] is None]:
        raise InvalidInputError([Fault(f"$.{name}", "cannot be null; leave it out to keep it") for name in missing])
