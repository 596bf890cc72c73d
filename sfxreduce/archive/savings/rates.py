"""Files of rates: what a site pays for disk, tape and computing."""

from __future__ import annotations

import json
import tomllib
from functools import cache
from importlib.resources import files
from pathlib import Path

from pydantic import ValidationError

from sfxreduce.archive.savings.costs import Rates
from sfxreduce.errors import RunNotFound, SchemaError
from sfxreduce.io.files.safe_read import read_small

__all__ = ["parse_rates", "read_rates", "shipped_rates"]

RATES_BYTES = 1 << 20
"""Longest file of rates that is read."""


def parse_rates(text: str, *, where: str) -> Rates:
    """Rates from the text of a TOML file.

    Parameters
    ----------
    where : str
        Path of the file, for the message.

    Raises
    ------
    SchemaError
        If a key is not known or missing, or a value is of the wrong type or out of range.
    """
    try:
        # Through JSON, where lists may be tuples, and nothing else is lax.
        return Rates.model_validate_json(json.dumps(tomllib.loads(text)))
    except ValidationError as error:
        fault = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(map(str, fault["loc"])) or "the file"
        told = "this key is not known" if fault["type"] == "extra_forbidden" else fault["msg"]
        raise SchemaError(
            f"{where}: {place}: {told}; see docs/explanation/savings.md for what a file of rates "
            "holds"
        ) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise SchemaError(f"{where}: expected TOML with rates, found {error}") from error


def read_rates(path: Path) -> Rates:
    """Read a file of rates; see `parse_rates`.

    Raises
    ------
    RunNotFound
        If it cannot be read.
    SchemaError
        If it is no text.
    """
    try:
        data = read_small(path, most_bytes=RATES_BYTES)
        return parse_rates(data.decode("utf-8"), where=str(path))
    except OSError as error:
        raise RunNotFound(
            f"{path}: cannot be read ({error.strerror or error}); check --rates"
        ) from error
    except UnicodeDecodeError as error:
        raise SchemaError(
            f"{path}: expected TOML in UTF-8, found other bytes; is it another file?"
        ) from error


@cache
def shipped_rates() -> Rates:
    """Rates that come with the package, from published prices.

    Examples
    --------
    >>> shipped_rates().disk.per_tb_year
    Range(low=18.0, mid=60.0, high=84.0)
    """
    text = files("sfxreduce.archive.rules").joinpath("presets", "rates.toml").read_text("utf-8")
    return parse_rates(text, where="the rates of the package")
