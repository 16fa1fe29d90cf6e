"""The price book: what an hour of a GPU costs, who says so and when. Shipped prices, and files of the user's own.

Every config takes `price`: a key of the book, or dollars per GPU-hour as a number.
"""

import math
import re
from datetime import date, datetime
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import AfterValidator, BeforeValidator, NonNegativeFloat, model_validator

from raylane.cluster.errors import UsageError
from raylane.cluster.strict import StrictModel, UniqueKeyLoader

_DATE = re.compile(r"([0-9]{4})(?:-([0-9]{2})(?:-([0-9]{2}))?)?")


def _date(value: Any) -> Any:
    """A date as text, also where YAML has read it as a date (a day) or a number (a year)."""
    if isinstance(value, date) and not isinstance(value, datetime):
        return value.isoformat()
    text = str(value) if type(value) in (int, str) else ""
    match = _DATE.fullmatch(text)
    if match is None:
        raise ValueError("must be YYYY, YYYY-MM or YYYY-MM-DD")
    year, month, day = (int(part or 1) for part in match.groups())
    try:
        date(year, month, day)
    except ValueError as error:
        raise ValueError(f"there is no such date: {error}") from error
    return text


class Price(StrictModel):
    """One price with where it comes from."""

    gpu: str
    provider: str
    usd_per_gpu_hour: NonNegativeFloat
    source: str
    as_of: Annotated[str, BeforeValidator(_date)] | None
    """YYYY, YYYY-MM or YYYY-MM-DD, in quotes or not; null when the source carries no date."""
    verified: bool = False
    """Read from the provider's own dated price list."""

    @model_validator(mode="after")
    def _dated(self) -> Self:
        if self.verified and self.as_of is None:
            raise ValueError("a verified price needs as_of")
        return self

    @property
    def label(self) -> str:
        """For tables: who, when, and whether it was checked. `source` says the rest."""
        return f"{self.provider}, {self.as_of or 'undated'}{'' if self.verified else ', unverified'}"


class PriceBook(StrictModel):
    """Prices by key."""

    prices: dict[str, Price]

    def get(self, key: str) -> Price:
        """The price of a key. Raises UsageError with the keys there are."""
        if key not in self.prices:
            raise UsageError(f"price {key}: {self.lacks()}")
        return self.prices[key]

    def lacks(self) -> str:
        """What to say of a key that is not here."""
        return f"is not in the price book; it has {', '.join(sorted(self.prices))}"

    def with_file(self, path: Path) -> "PriceBook":
        """This book with the entries of a user's file added; an entry of the same key takes the place of ours."""
        return PriceBook(prices=self.prices | PriceBook.from_yaml(path).prices)


@cache
def shipped_prices() -> PriceBook:
    """The prices that come with raylane."""
    text = files("raylane.cluster").joinpath("prices.yaml").read_text(encoding="utf-8")
    return PriceBook.from_data(yaml.load(text, UniqueKeyLoader), "prices.yaml")  # noqa: S506 - a SafeLoader


def _key_or_dollars(value: Any) -> Any:
    number = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
    if not (number or isinstance(value, str)):
        raise ValueError("a price is a key of the price book, or dollars per GPU-hour, a number from 0")
    return value


def _shipped(value: str | float) -> str | float:
    book = shipped_prices()
    if isinstance(value, str) and value not in book.prices:
        raise ValueError(book.lacks())
    return value


GpuPrice = Annotated[str | float, BeforeValidator(_key_or_dollars)]
"""A config's `price`: a key of the shipped book or of a user's file, or dollars per GPU-hour."""

ShippedGpuPrice = Annotated[GpuPrice, AfterValidator(_shipped)]
"""A config's `price` where no file of the user's own is read: the key must be in the shipped book."""


def one_price_at_most(price: str | float | None, usd_per_gpu_hour: float | None) -> None:
    """Raise ValueError when a config has both `price` and the older `usd_per_gpu_hour`."""
    if price is not None and usd_per_gpu_hour is not None:
        raise ValueError(f"give price or usd_per_gpu_hour, one of them (got {price} and {usd_per_gpu_hour})")


def gpu_hour_usd(price: str | float, book: PriceBook) -> float:
    """Dollars per GPU-hour of a config's `price`. Raises UsageError for a key that the book does not have."""
    return book.get(price).usd_per_gpu_hour if isinstance(price, str) else price
