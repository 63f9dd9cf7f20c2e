"""What failures have in common: the same for what differs only by its values or by where the code stands, another for the rest."""

from __future__ import annotations

import string
import traceback
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ledger.fingerprint import failure_kind, normalised, own_frames

WORDS = st.text(string.ascii_letters.replace("a", "g").replace("A", "G"), min_size=3, max_size=8).filter(
    lambda word: not set(word.lower()) <= set("abcdef")
)

TRACEBACK = """Traceback (most recent call last):
  File "/srv/app/.venv/lib/python3.11/site-packages/dramatiq/worker.py", line 560, in process_message
    res = actor(*message.args, **message.kwargs)
  File "/srv/app/jobs/billing.py", line {line}, in charge
    client.post(order)
  File "/srv/app/jobs/client.py", line {line}, in post
    response.raise_for_status()
  File "/usr/lib/python3.11/http/client.py", line 7, in raise_for_status
    raise HTTPError
urllib.error.HTTPError: 500
"""


def test_a_text_is_the_same_whatever_its_values():
    texts = {
        normalised(f"order {n} of '{name}' failed at 0x7f{n:04x}, id {id_}, {address}, {n * 7.5}, {digest}")
        for n, name, id_, address, digest in [
            (7, "Ada", "018f6f0e-5b7c-7c3a-9d2e-1f2a3b4c5d6e", "10.0.0.7:5432", "9f86d081884c7d65"),
            (
                70_000,
                'o\\\'Neil "x"',
                "6BA7B810-9DAD-11D1-80B4-00C04FD430C8",
                "192.168.10.77",
                "da39a3ee5e6b4b0d3255bfef95601890",
            ),
        ]
    }

    assert texts == {"order # of '…' failed at <hex>, id <id>, <address>, #, <hex>"}


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("can't open user's file", "can't open user's file"),
        ("mail to ada@example.org and bob.x+y@mail.example.com", "mail to <address> and <address>"),
        ("fe80::1:2 and ::1 refused", "<address> and <address> refused"),
        ("no such  file\n\tor directory ", "no such file or directory"),
        ("1,234.50 of 2026-11-28 08:36:00.5", "# of # <address>.#"),
        ("job7 of shard-12", "job# of shard-#"),
        ("facade, decade and deadbeef are words", "facade, decade and deadbeef are words"),
        ("`id` and \"two words\" and ''", "'…' and '…' and '…'"),
        ("", ""),
    ],
)
def test_what_is_left_of_a_text(text, same):
    assert normalised(text) == same


@given(st.text())
def test_any_text_is_normalised_and_doing_it_again_changes_nothing(text):
    once = normalised(text)

    assert normalised(once) == once


@given(words=st.lists(WORDS, min_size=1, max_size=5), numbers=st.lists(st.integers(0, 10**12), min_size=2, max_size=2))
def test_numbers_do_not_count_and_words_do(words, numbers):
    one, other = (f" {number} ".join([*words, "end"]) for number in numbers)

    assert failure_kind("max_retries", one, None) == failure_kind("max_retries", other, None)
    assert failure_kind("max_retries", one, None) != failure_kind("max_retries", one + " otherwise", None)


@given(st.text(), st.text(), st.text(alphabet='File "/x.py", line 1, in f\n|~ '))
def test_a_kind_is_told_of_any_texts(reason, error, trace):
    kind = failure_kind(reason, error, trace)

    assert kind == failure_kind(reason, error, trace)
    assert kind == "" or (len(kind) == 16 and set(kind) <= set("0123456789abcdef"))


def test_the_innermost_own_frames_count_without_their_lines():
    assert own_frames(TRACEBACK.format(line=12)) == ["jobs/billing.py:charge", "jobs/client.py:post"]
    assert failure_kind("max_retries", "x", TRACEBACK.format(line=12)) == failure_kind(
        "max_retries", "x", TRACEBACK.format(line=99)
    )
    moved = TRACEBACK.format(line=1).replace("/srv/app/", "/home/ada/new/")
    assert failure_kind("max_retries", "x", TRACEBACK.format(line=12)) == failure_kind("max_retries", "x", moved)


def test_another_place_is_another_kind():
    elsewhere = TRACEBACK.format(line=1).replace("in charge", "in refund")

    assert failure_kind("max_retries", "x", TRACEBACK.format(line=1)) != failure_kind("max_retries", "x", elsewhere)


def test_of_an_error_that_came_of_another_one_its_own_traceback_counts():
    def inner():
        raise KeyError("a")

    def outer():
        try:
            inner()
        except KeyError as error:
            raise ValueError("b") from error

    try:
        outer()
    except ValueError as error:
        text = "".join(traceback.format_exception(error))

    here = f"{Path(__file__).parent.name}/{Path(__file__).name}"
    assert own_frames(text)[-1] == f"{here}:outer"
    assert not any("inner" in frame for frame in own_frames(text))


def test_without_own_frames_the_innermost_one_stands_for_all():
    assert own_frames(
        'Traceback (most recent call last):\n  File "/usr/lib/python3.11/json/decoder.py", line 3, in decode\n'
    ) == ["json/decoder.py:decode"]
    assert own_frames("") == []


@pytest.mark.parametrize("reason", ["expired", "worker_lost", "unknown_actor", "time_limit"])
def test_some_deaths_are_kinds_by_themselves(reason):
    assert failure_kind(reason, "its turn came 3.4 s after its max_age", TRACEBACK) == ""
