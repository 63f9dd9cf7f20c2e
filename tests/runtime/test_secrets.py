"""Sealing: what comes out is what went in, for the same field of the same actor and by a key that was there; and nothing shows in texts."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from errors import SecretUnreadable
from ledger.sealed import MARK, MASK, is_sealed, masked, sealed_values
from runtime.secrets import Keyring, Redactor

OLD, NEW = b"o" * 32, b"n" * 32
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=5,
)


def seal(value, key=OLD, actor="charge", field="card", salt="id"):
    return Keyring([key]).seal(actor, field, value, salt)


@given(VALUES)
def test_what_is_sealed_opens_again_and_is_json(value):
    sealed = json.loads(json.dumps(seal(value)))

    assert is_sealed(sealed)
    assert Keyring([OLD]).open("charge", "card", sealed) == value


def test_the_same_send_has_the_same_text_and_other_sends_have_others():
    assert seal("4111") == seal("4111")
    assert (
        len(
            {
                seal(*what)[MARK]
                for what in [("4111",), ("4112",), ("4111", NEW), ("4111", OLD, "other"), ("4111", OLD, "charge", "pin")]
            }
        )
        == 5
    )
    assert seal("4111", salt="one")[MARK] != seal("4111", salt="two")[MARK]


@pytest.mark.parametrize(("actor", "field"), [("refund", "card"), ("charge", "note")])
def test_a_value_moved_elsewhere_does_not_open(actor, field):
    with pytest.raises(SecretUnreadable, match=f"actor '{actor}', secret argument '{field}' cannot be decrypted: it was changed"):
        Keyring([OLD]).open(actor, field, seal("4111"))


def test_a_value_that_was_changed_does_not_open():
    sealed = seal("4111")
    head, text = sealed[MARK].rsplit(".", 1)

    for changed in (text[:-4] + ("AAAA" if text[-4:] != "AAAA" else "BBBB"), text[:8], "", "!", "é"):
        with pytest.raises(SecretUnreadable, match="changed"):
            Keyring([OLD]).open("charge", "card", sealed | {MARK: f"{head}.{changed}"})


def test_every_key_opens_and_the_first_one_seals():
    both = Keyring([NEW, OLD])
    old = seal("4111")

    assert both.open("charge", "card", old) == "4111"
    assert not both.is_fresh(old)
    assert both.is_fresh(both.seal("charge", "card", "4111", "id"))
    with pytest.raises(SecretUnreadable, match=r"encrypted with the key .*, and SECRET_KEYS has [0-9a-f]{8}; add that key"):
        Keyring([NEW]).open("charge", "card", old)
    with pytest.raises(SecretUnreadable, match="SECRET_KEYS has none"):
        Keyring([]).open("charge", "card", old)


def test_readers_see_a_mask_however_deep_it_is():
    sealed = seal("4111")
    payload = {"args": [1, sealed], "kwargs": {"message": {"args": [sealed], "note": "x"}}}

    assert masked(payload) == {"args": [1, MASK], "kwargs": {"message": {"args": [MASK], "note": "x"}}}
    assert len(list(sealed_values(payload))) == 2
    assert not any(
        is_sealed(value) for value in (None, "x", {}, {MARK: "v1.a.b"}, sealed | {"more": 1}, sealed | {MARK: "v2.a.b"})
    )


@pytest.mark.parametrize(
    ("secret", "text", "hidden"),
    [
        ("hunter22", "ValueError: hunter22 is wrong", "ValueError: [secret] is wrong"),
        ("hunter22", "key=hunter22x", "key=[secret]x"),
        (4111, "card 4111 of 41110", "card [secret] of [secret]0"),
        (42, "42 of 420, 142", "[secret] of 420, 142"),
        ({"pin": "0815", "deep": ["4711"]}, "0815 4711", "[secret] [secret]"),
        ("a\nbcdefghi", r"KeyError: 'a\nbcdefghi'", "KeyError: '[secret]'"),
        ("-- begin\nMIIEvQIBADAN\n-- end", "no MIIEvQIBADAN here", "no [secret] here"),
        ('quo"ted', r'{"x": "quo\"ted"}', '{"x": "[secret]"}'),
        ("abcd.*", "abcdxx abcd.*", "abcdxx [secret]"),
        ("", "nothing", "nothing"),
        (None, "None True", "None True"),
        (True, "None True", "None True"),
    ],
)
def test_secrets_are_hidden_in_texts(secret, text, hidden):
    assert Redactor([secret]).text(text) == hidden


def test_the_longer_of_two_secrets_is_hidden_whole():
    assert Redactor(["hunter", "hunter22"]).text("hunter22 hunter") == "[secret] [secret]"


def test_results_keep_their_form():
    result = Redactor(["hunter22", 4711]).value(
        {"a": ["hunter22", 4711, 47110, "x hunter22"], "hunter22": True, "b": (1.5, None)}
    )

    assert result == {"a": [MASK, MASK, 47110, f"x {MASK}"], MASK: True, "b": [1.5, None]}
