"""What bytes, years and core-hours cost: a range from low to high, never one number.

Ranges are added and multiplied as intervals: the low end of a result pairs what speaks least for a
saving in every rate, the high end what speaks most for it. The middle pairs the middles.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from sfxreduce.archive.rules.policy import ClosedTable

__all__ = ["Amounts", "Compute", "Cost", "Range", "RateSource", "Rates", "Tier", "cost_of"]

TB = 10**12
SECONDS_PER_HOUR = 3600
MOST = 1e12
"""Largest rate: products of larger ones could be more than a float holds."""


class Range(ClosedTable):
    """A number that is not known exactly.

    Attributes
    ----------
    low, mid, high : float
        In ascending order.

    Examples
    --------
    >>> Range(low=1, mid=2, high=3) * Range(low=-1, mid=1, high=1)
    Range(low=-3.0, mid=2.0, high=3.0)
    """

    low: float
    mid: float
    high: float

    @model_validator(mode="after")
    def _ascending(self) -> Range:
        if not self.low <= self.mid <= self.high:
            raise ValueError(f"low <= mid <= high, found {self.low}, {self.mid}, {self.high}")
        return self

    @classmethod
    def exactly(cls, value: float) -> Range:
        """Range of a number that is known."""
        return cls(low=value, mid=value, high=value)

    def __add__(self, other: Range) -> Range:
        """Sum as an interval."""
        return Range(
            low=self.low + other.low, mid=self.mid + other.mid, high=self.high + other.high
        )

    def __sub__(self, other: Range) -> Range:
        """Difference as an interval."""
        return Range(
            low=self.low - other.high, mid=self.mid - other.mid, high=self.high - other.low
        )

    def __mul__(self, other: Range) -> Range:
        """Product as an interval."""
        ends = [a * b for a, b in product((self.low, self.high), (other.low, other.high))]
        return Range(low=min(ends), mid=self.mid * other.mid, high=max(ends))


def _in_range(found: Range) -> Range:
    if found.low < 0:
        raise ValueError(f"at least 0, found {found.low}")
    if found.high > MOST:
        raise ValueError(f"at most {MOST:g}, found {found.high:g}")
    return found


Rate = Annotated[Range, AfterValidator(_in_range)]


class Tier(ClosedTable):
    """What it costs to keep bytes somewhere.

    Attributes
    ----------
    per_tb_year : Range
        Money for 10^12 bytes and a year; on tape, of one copy.
    years : Range
        How long the bytes would be kept.
    kg_co2e_per_tb_year : Range
        Greenhouse gases in kilograms of CO2 equivalent, likewise.
    """

    per_tb_year: Rate
    years: Rate
    kg_co2e_per_tb_year: Rate


class Compute(ClosedTable):
    """What it costs to compute.

    Attributes
    ----------
    per_core_hour : Range
        Money.
    kwh_per_core_hour : Range
        Energy in kilowatt-hours, cooling included.
    kg_co2e_per_kwh : Range
        Of the electricity.
    core_seconds_per_event : Range or None
        What a filter was measured to need, if it was. Outputs do not record it.
    """

    per_core_hour: Rate
    kwh_per_core_hour: Rate
    kg_co2e_per_kwh: Rate
    core_seconds_per_event: Rate | None = None


class RateSource(ClosedTable):
    """Where a rate comes from."""

    rate: str
    says: str
    where: str


class Rates(ClosedTable):
    """All of a file of rates.

    Attributes
    ----------
    sources : tuple of RateSource
        At least one: a rate that nobody can look up is worth nothing.
    """

    rates_version: Literal[1] = 1
    name: Annotated[str, Field(min_length=1, max_length=200)]
    currency: Annotated[str, Field(pattern="^[A-Z]{3}$")]
    disk: Tier
    tape: Tier
    compute: Compute
    sources: Annotated[tuple[RateSource, ...], Field(min_length=1)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Amounts:
    """What is saved and what is spent for it.

    Parameters
    ----------
    disk_bytes : int
        That the disk holds less; negative if it holds more.
    tape_bytes : int
        That tape holds more, all copies together.
    events : int
        That were filtered.
    """

    disk_bytes: int
    tape_bytes: int
    events: int

    def __add__(self, other: Amounts) -> Amounts:
        """Amounts of both."""
        return Amounts(
            disk_bytes=self.disk_bytes + other.disk_bytes,
            tape_bytes=self.tape_bytes + other.tape_bytes,
            events=self.events + other.events,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cost:
    """Money and greenhouse gases saved, each part by itself. Negative is a loss.

    Parameters
    ----------
    disk : Range
        Money saved on disk, over the years the bytes would lie there.
    tape : Range
        Money spent on tape.
    compute : Range or None
        Money spent on filtering; None if it is not known what that took.
    net : Range
        Disk less tape, less compute where that is known.
    kg_co2e : Range
        Net, in kilograms of CO2 equivalent.
    core_hours_covered : float
        Hours of one core that the middle of the money saved on storage would pay for.
    """

    disk: Range
    tape: Range
    compute: Range | None
    net: Range
    kg_co2e: Range
    core_hours_covered: float

    def to_json(self) -> dict[str, Any]:
        """Return the same as a JSON object."""
        told = {
            name: getattr(self, name).model_dump() for name in ("disk", "tape", "net", "kg_co2e")
        }
        return {
            **told,
            "compute": self.compute.model_dump() if self.compute else None,
            "net_of_compute": self.compute is not None,
            "core_hours_covered": self.core_hours_covered,
        }


def cost_of(amounts: Amounts, rates: Rates) -> Cost:
    """Weigh what is saved against what is spent.

    Examples
    --------
    >>> one = Range.exactly(1)
    >>> tier = Tier(per_tb_year=Range(low=1, mid=2, high=3), years=one, kg_co2e_per_tb_year=one)
    >>> compute = Compute(per_core_hour=one, kwh_per_core_hour=one, kg_co2e_per_kwh=one)
    >>> source = RateSource(rate="all", says="made up", where="this example")
    >>> rates = Rates(name="x", currency="EUR", disk=tier, tape=tier, compute=compute,
    ...               sources=(source,))
    >>> cost_of(Amounts(disk_bytes=10 * TB, tape_bytes=TB, events=5), rates).net
    Range(low=7.0, mid=18.0, high=29.0)
    """
    disk_years = Range.exactly(amounts.disk_bytes / TB) * rates.disk.years
    tape_years = Range.exactly(amounts.tape_bytes / TB) * rates.tape.years
    disk, tape = disk_years * rates.disk.per_tb_year, tape_years * rates.tape.per_tb_year
    net = disk - tape
    gases = (
        disk_years * rates.disk.kg_co2e_per_tb_year - tape_years * rates.tape.kg_co2e_per_tb_year
    )
    per_hour = rates.compute.per_core_hour.mid
    covered = max(net.mid, 0.0) / per_hour if per_hour else 0.0
    compute, each = None, rates.compute.core_seconds_per_event
    if each is not None:
        hours = Range.exactly(amounts.events / SECONDS_PER_HOUR) * each
        compute = hours * rates.compute.per_core_hour
        net -= compute
        gases -= hours * rates.compute.kwh_per_core_hour * rates.compute.kg_co2e_per_kwh
    return Cost(
        disk=disk,
        tape=tape,
        compute=compute,
        net=net,
        kg_co2e=gases,
        core_hours_covered=covered,
    )
