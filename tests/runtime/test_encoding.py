"""Whatever is accepted comes back from Postgres as it was; whatever is not says which field it was."""

from __future__ import annotations

import json
import math
import sys
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from errors import OptionError, PayloadError
from ledger.database import Database
from runtime import encoding
from runtime.encoding import MAX_DEPTH, clean_text, encode_options, encode_payload, encode_result

TEXT = st.text(st.characters(codec=None), max_size=20)
NUMBERS = st.integers(-(2**80), 2**80) | st.floats()
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(TEXT, inner, max_size=4),
    max_leaves=12,
)
LIMIT = 10_000
quick = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def sound(value: Any) -> bool:
    """Whether Postgres can hold the value and JSON can say it."""
    if isinstance(value, str):
        return "\x00" not in value and not any("\ud800" <= letter <= "\udfff" for letter in value)
    if isinstance(value, float):
        return math.isfinite(value)
    if isinstance(value, dict):
        return all(sound(item) for pair in value.items() for item in pair)
    return all(map(sound, value)) if isinstance(value, list) else True


@pytest.fixture(scope="module")
def postgres(databases):
    url = databases.create(migrated=False)
    database = Database(url)
    with database.dedicated("test") as connection:
        yield connection
    databases.drop(url)


@quick
@given(
    args=st.lists(JSON, max_size=3).map(tuple),
    kwargs=st.dictionaries(st.from_regex(r"[a-z]{1,5}", fullmatch=True), JSON, max_size=3),
)
def test_a_payload_is_refused_or_comes_back_equal(postgres, args, kwargs):
    if not sound([list(args), kwargs]):
        with pytest.raises(PayloadError) as caught:
            encode_payload("work", args, kwargs, LIMIT)
        assert caught.value.field.startswith(("args[", *kwargs))
        return

    text = encode_payload("work", args, kwargs, LIMIT)
    (back,) = postgres.execute("SELECT %s::json", [text]).fetchone()
    assert back == {"args": list(args), "kwargs": kwargs}
    assert json.dumps(back) == json.dumps({"args": list(args), "kwargs": kwargs})


@quick
@given(value=JSON)
def test_a_result_comes_back_and_its_strings_are_cleaned(postgres, value):
    try:
        text = encode_result(value, LIMIT)
    except ValueError:
        assert not sound(value)
        return

    (back,) = postgres.execute("SELECT %s::json", [text]).fetchone()
    if sound(value):
        assert back == value


@quick
@given(text=st.text(st.characters(codec=None)), limit=st.integers(60, 200))
def test_cleaned_text_can_be_stored(postgres, text, limit):
    cleaned = clean_text(text, limit)

    assert postgres.execute("SELECT %s::text", [cleaned]).fetchone() == (cleaned,)
    assert len(cleaned) <= limit + 40
    if sound(text) and len(text) <= limit:
        assert cleaned == text


def nested(depth: int, kind: type) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = [value] if kind is list else {"k": value}
    return value


@pytest.mark.parametrize("kind", [list, dict])
def test_nesting_ends_where_readers_might_give_up(kind):
    encode_payload("work", (nested(MAX_DEPTH - 5, kind),), {}, 10**6)
    for depth in (MAX_DEPTH + 5, sys.getrecursionlimit() - 150, 100_000):
        with pytest.raises(PayloadError, match="nested too deeply"):
            encode_payload("work", (nested(depth, kind),), {}, 10**6)
        with pytest.raises(OptionError, match="nested too deeply"):
            encode_options("work", {"o": nested(depth, kind)}, 10**6)
        with pytest.raises(ValueError, match=r"nested too deeply|not JSON"):
            encode_result(nested(depth, kind), 10**6)


def test_a_value_that_contains_itself_is_refused():
    value: list[Any] = []
    value.append(value)

    with pytest.raises(PayloadError, match="contains itself"):
        encode_payload("work", (value,), {}, LIMIT)


def test_sizes_are_bytes_of_json_and_the_largest_field_is_named():
    with pytest.raises(PayloadError, match=r"field 'big'.* more than the 100 of MAX_PAYLOAD_BYTES"):
        encode_payload("work", (1,), {"small": "x", "big": "ü" * 60}, 100)
    with pytest.raises(OptionError, match="option 'big'"):
        encode_options("work", {"small": 1, "big": "x" * 200}, 100)
    with pytest.raises(ValueError, match="MAX_RESULT_BYTES"):
        encode_result("ü" * 60, 100)
    assert encode_result(None, 100) is None
    assert encode_options("work", {}, 100) is None


@pytest.mark.parametrize(
    "huge",
    [
        lambda: "x" * 101,
        lambda: ["x" * 60, {"k": "x" * 60}],
        lambda: {"k" * 101: 1},
        lambda: [[0] * 10] * 10,
        lambda: dict.fromkeys(range(60)),
    ],
    ids=["text", "texts", "key", "lists", "entries"],
)
def test_a_result_that_is_too_large_for_certain_is_refused_without_its_json(monkeypatch, huge):
    encoded = []
    monkeypatch.setattr(encoding, "_encoder", SimpleNamespace(encode=encoded.append))

    with pytest.raises(ValueError, match="more bytes of JSON than the 100 of MAX_RESULT_BYTES"):
        encode_result(huge(), 100)

    assert encoded == []


@quick
@given(value=JSON)
def test_a_result_is_refused_for_its_size_from_its_last_byte_on(value):
    try:
        text = encode_result(value, 10**6)
    except ValueError:
        assert not sound(value)
        return
    if text is None:
        return
    size = len(text.encode())

    assert encode_result(value, size) == text
    with pytest.raises(ValueError, match="MAX_RESULT_BYTES"):
        encode_result(value, size - 1)
