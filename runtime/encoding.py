"""Turning what a ``send()`` was given into the JSON text of a row, and refusing what cannot come back from Postgres unharmed.

Python's encoder lets through what Postgres or another reader then chokes on: NaN and Infinity, NUL characters, lone surrogates,
integers too long to read back. All of them are refused here, with the name of the field they stand in, before anything is stored.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from errors import OptionError, PayloadError

#: Deepest nesting that is accepted: Python's and Postgres' readers give up, each at a depth that hangs on the caller's stack.
MAX_DEPTH: Final = 200
#: Longest integer that is accepted, in digits: Python refuses to read longer ones.
MAX_DIGITS: Final = 4_000

_encoder: Final = json.JSONEncoder(separators=(",", ":"), ensure_ascii=False, allow_nan=False, check_circular=True)


def encode_payload(actor: str, args: tuple[Any, ...], kwargs: dict[str, Any], limit: int) -> str:
    """The payload of a job as JSON text, at most ``limit`` bytes long.

    Raises:
        PayloadError: naming the actor and the field that cannot be stored, and why.
    """
    payload = {"args": args, "kwargs": kwargs}
    try:
        text = _encoder.encode(payload)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError) as error:
        field, reason = _culprit(payload) or ("arguments", str(error))
        raise PayloadError(actor, field, reason) from None
    if ("\\u0000" in text or _may_be_too_deep(text)) and (found := _culprit(payload)):
        raise PayloadError(actor, *found)
    if size > limit:
        raise PayloadError(
            actor,
            _largest(args, kwargs),
            f"the arguments take {size:,} bytes of JSON, more than the {limit:,} of MAX_PAYLOAD_BYTES; store the data and send its key",
        )
    return text


def encode_options(actor: str, options: dict[str, Any], limit: int) -> str | None:
    """A message's options as JSON text; None when there are none.

    Raises:
        OptionError: naming the option that cannot be stored.
    """
    if not options:
        return None
    try:
        text = _encoder.encode(options)
        size = len(text.encode())
    except (TypeError, ValueError, RecursionError, UnicodeEncodeError):
        text, size = "", 0
    if not text or "\\u0000" in text or _may_be_too_deep(text):
        for name, value in options.items():
            if found := _culprit({name: value}):
                raise OptionError(actor, name, found[1])
    if size > limit:
        raise OptionError(
            actor, max(options, key=lambda name: len(repr(options[name]))), f"the options take more than {limit:,} bytes"
        )
    return text


def encode_result(value: Any, limit: int) -> str | None:
    """A return value as JSON text; None stays None. Strings lose what Postgres cannot hold (NUL, lone surrogates).

    Raises:
        ValueError: it is not JSON, or longer than ``limit`` bytes.
    """
    if value is None:
        return None
    if isinstance(value, str | list | tuple | dict) and _is_longer(value, limit):
        raise ValueError(f"the return value takes more bytes of JSON than the {limit:,} of MAX_RESULT_BYTES")
    try:
        text = _encoder.encode(value)
    except (TypeError, RecursionError) as error:
        raise ValueError(f"the return value is not JSON: {error}") from None
    if _may_be_too_deep(text) and any(leaf is RecursionError for _, leaf in _leaves(value, "", 0)):
        raise ValueError("the return value is nested too deeply")
    if "\\u0000" in text:
        text = _encoder.encode(_without_nul(value))
    data = text.encode("utf-8", "replace")
    if len(data) > limit:
        raise ValueError(f"the return value takes {len(data):,} bytes of JSON, more than the {limit:,} of MAX_RESULT_BYTES")
    return data.decode()


def clean_text(text: str, limit: int) -> str:
    """A text that Postgres can hold: without NUL and lone surrogates, cut in the middle to ``limit`` characters."""
    text = text.replace("\x00", "\\x00").encode("utf-8", "backslashreplace").decode()
    if len(text) > limit:
        half = limit // 2 - 10
        text = f"{text[:half]}\n[... {len(text) - 2 * half:,} characters left out ...]\n{text[-half:]}"
    return text


def _may_be_too_deep(text: str) -> bool:
    """Whether the text has enough brackets to be nested too deeply; only then is it worth a walk."""
    return text.count("[") + text.count("{") > MAX_DEPTH


def _is_longer(value: Any, limit: int) -> bool:
    """Whether the JSON of a value is longer than so many bytes for certain, without making it.

    Making it is one call that no other thread gets a turn in: with 100 MB it keeps the heartbeat waiting beyond a short lease. This is a
    look at lengths, level by level, that ends as soon as it knows. What it cannot know it leaves to the encoder.
    """
    size, level = 0, [value]
    for _ in range(MAX_DEPTH):
        below: list[Any] = []
        for item in level:
            if isinstance(item, str):
                # NUL is dropped; every other character is a byte at least.
                size += len(item) - item.count("\x00") + 2
            elif isinstance(item, dict):
                size += 2 * len(item) + 1
                if size + len(below) + len(item) > limit:
                    return True
                if any(isinstance(key, str) and "\x00" in key for key in item):
                    # Without NUL two keys may be one.
                    return False
                below += item.keys()
                below += item.values()
            elif isinstance(item, list | tuple):
                size += len(item) + 1
                if size + len(below) + len(item) > limit:
                    return True
                below += item
            else:
                size += 1
            if size > limit:
                return True
        if not below:
            break
        level = below
    return False


def _without_nul(value: Any) -> Any:
    if isinstance(value, str):
        return value.replace("\x00", "")
    if isinstance(value, dict):
        return {_without_nul(key): _without_nul(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nul(item) for item in value]
    return value


def _largest(args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
    sizes = {f"args[{place}]": len(_encoder.encode(value)) for place, value in enumerate(args)}
    sizes |= {name: len(_encoder.encode(value)) for name, value in kwargs.items()}
    return max(sizes, key=lambda name: sizes[name], default="arguments")


def _culprit(payload: dict[str, Any]) -> tuple[str, str] | None:
    """The first field that cannot be stored, and why."""
    for path, value in _leaves(payload, "", 0):
        if (reason := _unstorable(value)) is not None:
            return path, reason
    return None


def _leaves(value: Any, path: str, depth: int) -> Iterator[tuple[str, Any]]:
    if depth > MAX_DEPTH:
        yield path, RecursionError
    elif isinstance(value, dict):
        for key, item in value.items():
            name = key if path in ("", "kwargs") and isinstance(key, str) else f"{path}.{key}"
            yield f"{path or 'key'} {key!r}", key
            yield from _leaves(item, name, depth + 1)
    elif isinstance(value, list | tuple):
        for place, item in enumerate(value):
            yield from _leaves(item, f"{path}[{place}]", depth + 1)
    else:
        yield path, value


def _unstorable(value: Any) -> str | None:
    if value is RecursionError:
        return "is nested too deeply, or contains itself"
    if isinstance(value, str):
        if "\x00" in value:
            return "holds a NUL character (\\u0000), which Postgres cannot store"
        try:
            value.encode()
        except UnicodeEncodeError:
            return "holds a lone surrogate, which is not text"
        return None
    if isinstance(value, float):
        return None if math.isfinite(value) else f"is {value}, which is not JSON"
    if isinstance(value, bool) or value is None:
        return None
    if isinstance(value, int):
        return f"is an integer of more than {MAX_DIGITS} digits" if value.bit_length() > MAX_DIGITS * 3.3 else None
    return f"is a {type(value).__name__}, which is not JSON; send a str, int, float, bool, None, list or dict"
