"""Columns of a run: one row for each event, what is missing marked as missing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray as xr

__all__ = [
    "EVENT_COLUMNS",
    "MISSING_TIME",
    "Column",
    "Table",
    "Values",
    "event_columns",
    "event_table",
    "plain_text",
    "select_events",
]

MISSING_TIME = int(np.iinfo(np.int64).min)
"""Marks an event without a time stamp; the bit pattern of NumPy's not-a-time."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Column:
    """A per-event column that every run has.

    Parameters
    ----------
    dtype : str
        A NumPy dtype, or "str" for variable-length UTF-8 text.
    units : str
        Empty for text and counts.
    missing : float, int or str
        What stands where the source has no value.
    """

    name: str
    long_name: str
    dtype: str
    units: str
    missing: float | int | str


EVENT_COLUMNS = (
    Column(
        name="event_id",
        long_name="name of the event in its experiment",
        dtype="str",
        units="",
        missing="",
    ),
    Column(
        name="timestamp_ns",
        long_name="time of the X-ray pulse",
        dtype="int64",
        units="nanoseconds since 1970-01-01",
        missing=MISSING_TIME,
    ),
    Column(
        name="photon_energy_ev",
        long_name="photon energy",
        dtype="float64",
        units="eV",
        missing=np.nan,
    ),
    Column(
        name="pulse_energy_mj",
        long_name="pulse energy",
        dtype="float64",
        units="mJ",
        missing=np.nan,
    ),
    Column(
        name="source_file",
        long_name="file the event was read from",
        dtype="str",
        units="",
        missing="",
    ),
    Column(
        name="source_event", long_name="position in that file", dtype="int64", units="1", missing=-1
    ),
)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Values:
    """One variable of a `Table`: what is read of a DataArray, and no more.

    Parameters
    ----------
    dims : tuple of str
        One for each axis of the values.
    attrs : mapping
        As stored.
    """

    dims: tuple[str, ...]
    values: NDArray[np.generic]
    attrs: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Table:
    """Columns that become a Dataset when somebody needs one: importing xarray takes 0.5 s.

    Until then it answers as a Dataset does: names, sizes, attributes, and values by name.

    Parameters
    ----------
    variables : mapping of str to Values
        By name. One that is called like one of its dimensions is a coordinate and no column.
    attrs : mapping
        Of the whole table.

    Raises
    ------
    ValueError
        If two variables disagree on the size of a dimension.

    Examples
    --------
    >>> table = event_table(2, photon_energy_ev=np.array([8000.0, 8001.0]))
    >>> table.sizes, "event_id" in table, table["photon_energy_ev"].values.tolist()
    ({'event': 2}, True, [8000.0, 8001.0])
    """

    variables: Mapping[str, Values]
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        sizes = self.sizes
        for name, variable in self.variables.items():
            expected = tuple(sizes[dim] for dim in variable.dims)
            if variable.values.shape != expected:
                raise ValueError(
                    f"{name}: expected shape {expected} on {variable.dims}, as other columns "
                    f"have, found {variable.values.shape}"
                )

    @property
    def sizes(self) -> dict[str, int]:
        """Length of every dimension."""
        found = self.variables.values()
        return {d: n for v in found for d, n in zip(v.dims, v.values.shape, strict=True)}

    def __iter__(self) -> Iterator[str]:
        return (name for name, variable in self.variables.items() if name not in variable.dims)

    def __contains__(self, name: object) -> bool:
        return name in self.variables

    def __getitem__(self, name: str) -> Values:
        return self.variables[name]

    def dataset(self) -> xr.Dataset:
        """Return the same as a Dataset; the arrays are not copied."""
        import xarray as xr  # see the class

        data = {n: (v.dims, v.values, dict(v.attrs)) for n, v in self.variables.items()}
        return xr.Dataset(data, attrs=dict(self.attrs))


def event_columns(n_events: int, **values: NDArray[np.generic] | Sequence[str]) -> xr.Dataset:
    """Columns of a run: those given, the others marked as missing.

    Parameters
    ----------
    **values
        Arrays of length `n_events` by column name.

    Examples
    --------
    >>> columns = event_columns(2, photon_energy_ev=np.array([8000.0, 8001.0]))
    >>> columns.pulse_energy_mj.values
    array([nan, nan])
    """
    return event_table(n_events, **values).dataset()


def event_table(n_events: int, **values: NDArray[np.generic] | Sequence[str]) -> Table:
    """Columns of a run as `event_columns` gives them, of which no Dataset is made yet."""
    data = {}
    for column in EVENT_COLUMNS:
        dtype = np.dtype(object) if column.dtype == "str" else np.dtype(column.dtype)
        value = values.get(column.name)
        array = (
            np.full(n_events, column.missing, dtype) if value is None else np.asarray(value, dtype)
        )
        if column.dtype == "str":
            array = np.array([plain_text(str(text)) for text in array], object)
        attrs = {"long_name": column.long_name}
        if column.units:
            attrs["units"] = column.units
        data[column.name] = Values(dims=("event",), values=array, attrs=attrs)
    return Table(variables=data)


def select_events(table: xr.Dataset, events: NDArray[np.int64]) -> xr.Dataset:
    """Rows of a per-event table for some events, lists of peaks included.

    Parameters
    ----------
    table : Dataset
        Columns on dimension ``event``. Lists on the dimension of ``peak_event``, usually
        ``peak``, follow it, and it is numbered anew.
    events : ndarray of int64
        Positions to select, ascending.

    Examples
    --------
    >>> import xarray as xr
    >>> table = xr.Dataset({"kind": ("event", [0, 1, 1]), "peak_event": ("peak", [1, 2, 2]),
    ...                     "peak_x": ("peak", [5.0, 6.0, 7.0])})
    >>> chosen = select_events(table, np.array([2]))
    >>> chosen.peak_event.values.tolist(), chosen.peak_x.values.tolist()
    ([0, 0], [6.0, 7.0])
    """
    chosen = table.isel(event=events)
    owners = table.get("peak_event")
    if owners is not None and owners.ndim == 1 and owners.dims != ("event",):
        dim = owners.dims[0]
        chosen = chosen.isel({dim: np.isin(owners.values, events)})
        places = np.searchsorted(events, chosen["peak_event"].values)
        chosen["peak_event"] = (dim, places.astype(owners.dtype), owners.attrs)
    return chosen


def plain_text(text: str) -> str:
    r"""Text that UTF-8 can hold: bytes of a file name that are none become backslash escapes.

    Examples
    --------
    >>> plain_text(b"run\xff.cxi".decode(errors="surrogateescape"))
    'run\\udcff.cxi'
    """
    return text.encode(errors="backslashreplace").decode()
