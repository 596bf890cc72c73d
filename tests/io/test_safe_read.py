"""A document becomes a value whole and unconverted, or not at all."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfxreduce.errors import UsageError
from sfxreduce.io.files.safe_read import parse_as


class Kind(StrEnum):
    ONE = "one"
    TWO = "two"


@dataclass(frozen=True, slots=True, kw_only=True)
class Inner:
    count: int = 0

    def __post_init__(self) -> None:
        if self.count < 0:
            raise UsageError("a count below nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outer:
    kind: Kind
    share: float
    name: str | None
    inner: tuple[Inner, ...]
    settings: Mapping[str, bool | float | int | str] = field(default_factory=dict)


OUTER = st.builds(
    Outer,
    kind=st.sampled_from(Kind),
    share=st.floats(allow_nan=False),
    name=st.none() | st.text(max_size=5),
    inner=st.lists(st.builds(Inner, count=st.integers(0, 2**70)), max_size=3).map(tuple),
    settings=st.dictionaries(
        st.text(max_size=3),
        st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=3),
        max_size=3,
    ),
)


def good() -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        json.dumps(asdict(Outer(kind=Kind.TWO, share=0.5, name=None, inner=(Inner(), Inner()))))
    )
    return document


@given(OUTER)
def test_a_value_comes_back_from_its_json_with_the_types_it_had(value: Outer) -> None:
    again = parse_as(Outer, json.loads(json.dumps(asdict(value))))
    assert again == value
    assert [type(v) for v in again.settings.values()] == [type(v) for v in value.settings.values()]


def test_what_is_no_number_stays_none() -> None:
    assert math.isnan(parse_as(Outer, good() | {"share": math.nan}).share)
    assert parse_as(Outer, good() | {"share": -math.inf}).share == -math.inf


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"kind": "three"}, "'kind': input should be 'one' or 'two', found 'three'"),
        ({"kind": 1}, "'kind'"),
        ({"share": "0.5"}, "'share': input should be a valid number, found '0.5'"),
        ({"share": True}, "'share'"),
        ({"share": None}, "'share'"),
        ({"name": 3}, "'name'"),
        ({"inner": {}}, "'inner'"),
        ({"inner": [{"count": 1.0}]}, "'inner.0.count'"),
        ({"inner": [{"count": "1"}]}, "'inner.0.count'"),
        ({"inner": [{"count": True}]}, "'inner.0.count'"),
        ({"inner": [{"count": 1}, {}]}, "'inner.1.count': field required, found none"),
        ({"inner": [{"count": 1, "more": 2}]}, "'inner.0.more': unexpected"),
        ({"settings": {"a": None}}, "'settings.a"),
        ({"a\n\x1b[31m": 1}, r"'a\\n\\x1b\[31m': unexpected"),
        ({"a" * 5000: "b" * 5000}, "'a{79}: unexpected.*, found 'b{59}$"),
    ],
)
def test_an_entry_of_another_kind_is_refused_by_its_name_in_one_line(
    change: dict[str, Any], says: str
) -> None:
    with pytest.raises(ValueError, match=says) as caught:
        parse_as(Outer, good() | change)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", sorted(good()))
def test_an_entry_that_has_a_default_must_be_there_all_the_same(name: str) -> None:
    document = good()
    del document[name]
    with pytest.raises(ValueError, match=f"'{name}': field required"):
        parse_as(Outer, document)


@pytest.mark.parametrize("document", [None, 3, "a", [], [good()]])
def test_what_is_no_object_is_refused(document: object) -> None:
    with pytest.raises(ValueError, match="input should be an object"):
        parse_as(Outer, document)


def test_a_document_nested_too_deep_is_refused() -> None:
    deep: Any = 1
    for _ in range(900):
        deep = [deep]
    with pytest.raises(ValueError, match="depth"):
        parse_as(Outer, good() | {"inner": deep})


def test_what_a_value_says_of_its_own_fields_is_heard() -> None:
    with pytest.raises(UsageError, match="below nothing"):
        parse_as(Outer, good() | {"inner": [{"count": -1}]})


@pytest.mark.parametrize("arguments", ["", "; from sfxreduce_cli.main import app"])
def test_nobody_pays_for_the_validator_who_does_not_use_it(arguments: str) -> None:
    code = f"import sys, sfxreduce{arguments}; assert 'pydantic' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
