"""The job type ``process_image``: fetch or read an image, resize and convert it, store the result.

The source is either somebody else's URL, fetched by ``actors.outbound``, or a storage key. Decoding happens in a child process
(``actors.image_child``) that is started, not forked: a Dramatiq worker has threads, and a fork of them deadlocks sooner or
later. A picture that is no picture, too large, or too dear to decode is permanent; a source that does not answer, and a child
that crashes, are tried once more.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any, Final, Literal

import dramatiq

from actors import outbound
from actors.storage import storage
from switchyard import Permanent, current_job

#: The largest source in bytes, fetched or stored.
MAX_SOURCE_BYTES: Final = 10_000_000
#: The longest side of a result, in pixels.
MAX_SIDE: Final = 8_000
#: Seconds for fetching a source, all redirects and the whole body together.
FETCH_TIMEOUT: Final = 30.0
#: Seconds for the child on the clock; its processor time has a limit of its own, half of this.
CHILD_TIMEOUT: Final = 60.0

_CHILD: Final = Path(__file__).with_name("image_child.py")
#: The child's exit code for an image that must not be read; its REFUSED.
_CHILD_REFUSED: Final = 65
_RETRIED_STATUS: Final = frozenset({408, 425, 429})


class ChildCrashed(Exception):
    """The decoding process ended by an accident; tried again, in case it was the machine's."""


@dramatiq.actor(queue_name="images", max_retries=1, min_backoff=5_000, max_backoff=5_000, time_limit=120_000, concurrency=2)
def process_image(
    source: str,
    width: int,
    height: int,
    format: Literal["jpeg", "png", "webp"] = "jpeg",
    fit: Literal["contain", "cover"] = "contain",
    quality: int = 85,
) -> dict[str, Any]:
    """Resize and convert one image: 2 attempts, 5 s apart.

    The picture is turned as its camera says, and loses its metadata (place, device) but not its colours. Of an animation the
    first frame is taken.

    Parameters:
        source: an http(s) URL, or a storage key. JPEG, PNG or WebP, up to 10 MB and 50 million pixels.
        width, height: the box in pixels, 1 to 8,000 each.
        format: what to write. JPEG has no transparency: it becomes white.
        fit: ``contain`` keeps the whole picture within the box and enlarges nothing; ``cover`` fills the box exactly, cut at
            the edges, enlarged if need be.
        quality: 1 to 95, for JPEG and WebP.

    Returns:
        ``key`` (``images/<job id>.<format>``), ``width``, ``height``, ``bytes``.

    Raises:
        Permanent: a parameter is out of range, the source is refused, missing, or no image that may be decoded.
        Unreachable: the source's server did not answer properly.
    """
    job = current_job()
    for name, value, most in (("width", width, MAX_SIDE), ("height", height, MAX_SIDE), ("quality", quality, 95)):
        if not 1 <= value <= most:
            raise Permanent(f"{name}: must be 1 to {most}, not {value}")
    job.progress(0, "fetch")
    data = _load(source)
    job.progress(30, "resize")
    order = {"width": width, "height": height, "format": format, "fit": fit, "quality": quality}
    size, image = _convert(data, order)
    job.progress(90, "store")
    key = f"images/{job.id}.{format}"
    storage().put(key, image)
    job.progress(100, "done")
    return {"key": key, **size, "bytes": len(image)}


def _load(source: str) -> bytes:
    """Get the image's bytes from a URL or from the storage."""
    if "://" not in source:
        return storage().get(source, limit=MAX_SOURCE_BYTES)
    response = outbound.get(source, max_bytes=MAX_SOURCE_BYTES, timeout=FETCH_TIMEOUT)
    if response.status == 200:
        return response.body
    if response.status >= 500 or response.status in _RETRIED_STATUS:
        raise outbound.Unreachable(f"the source answered {response.status}")
    raise Permanent(f"source: its server answered {response.status}")


def _convert(data: bytes, order: dict[str, Any]) -> tuple[dict[str, int], bytes]:
    """Run the child. It gets this process's module path, and nothing else of its environment: no passwords to leak."""
    try:
        child = subprocess.run(
            [sys.executable, "-P", str(_CHILD), json.dumps(order)],
            input=data,
            capture_output=True,
            timeout=CHILD_TIMEOUT,
            env={"PYTHONPATH": os.pathsep.join(path for path in sys.path if path), "PYTHONDONTWRITEBYTECODE": "1"},
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ChildCrashed(f"the image was not decoded within {CHILD_TIMEOUT:.0f} s") from error
    if child.returncode == _CHILD_REFUSED:
        raise Permanent(f"source: cannot be used as an image: {child.stderr.decode('utf-8', 'replace')[:300]}")
    if child.returncode == -signal.SIGXCPU:
        raise Permanent("source: decoding it takes more processor time than one image may have")
    if child.returncode != 0:
        raise ChildCrashed(f"the decoding process ended with code {child.returncode}")
    head, _, image = child.stdout.partition(b"\n")
    return json.loads(head), image
