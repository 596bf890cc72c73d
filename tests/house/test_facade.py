"""The names people import are few, sorted, real, and loaded when they are asked for."""

from __future__ import annotations

import importlib
import inspect
import re
from collections.abc import Mapping

import pytest

import sfxreduce


def test_every_public_name_is_there_and_documented() -> None:
    assert len(set(sfxreduce.__all__)) == len(sfxreduce.__all__)
    for name in sfxreduce.__all__:
        value = getattr(sfxreduce, name)
        assert isinstance(value, Mapping) or value.__doc__, name
        assert name in dir(sfxreduce)


def test_names_for_type_checkers_are_those_that_are_loaded() -> None:
    source = inspect.getsource(sfxreduce)
    block = source[source.index("if TYPE_CHECKING:") : source.index("__all__ = [")]
    declared = {}
    for home, names in re.findall(r"from sfxreduce\.(\S+) import (.+)", block):
        for entry in names.split(", "):
            original, _, alias = entry.partition(" as ")
            declared[alias or original] = (home, original)
    assert declared == sfxreduce._HOMES
    assert set(declared) == set(sfxreduce.__all__)


def test_a_name_that_is_not_public_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = sfxreduce.nothing


def test_no_public_name_hides_a_module() -> None:
    for name in sfxreduce.__all__:
        with pytest.raises(ModuleNotFoundError):
            importlib.import_module(f"sfxreduce.{name}")
