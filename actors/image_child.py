"""The process that decodes and resizes one image, run as a script by ``actors.images`` and never imported by it.

Image decoders are large C libraries that read what strangers made. So the decoding happens where it can hurt nobody: in a
process of its own, without the parent's environment, with a bound on memory and processor time. It takes the image on
standard input and its order as one JSON argument, and answers with the new image on standard output, its size in a first line:

    {"width": 800, "height": 533}\n<bytes>

Exit code 0 is an image, 65 an image that cannot or must not be read (the reason on standard error), anything else an accident.
"""

from __future__ import annotations

import io
import json
import resource
import sys
import warnings
from typing import Any, Final, NoReturn

#: Address space in bytes, and processor time in seconds, for one image.
MEMORY_LIMIT: Final = 1_073_741_824
CPU_LIMIT: Final = 30
#: Pixels of the largest image that is decoded; 50 million fit into the memory limit with their copies.
MAX_PIXELS: Final = 50_000_000
#: The exit code of a refusal; EX_DATAERR of sysexits.h.
REFUSED: Final = 65


def limit_resources() -> None:
    """Bound this process before anything of the image is touched."""
    if sys.platform != "darwin":  # macOS refuses to set it; servers are not macOS
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_LIMIT, MEMORY_LIMIT))
    # One second between the soft and the hard limit: SIGXCPU tells the parent what a bare SIGKILL would not.
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_LIMIT, CPU_LIMIT + 1))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    # The answer goes through a pipe; no file has to be written.
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))


def convert(data: bytes, order: dict[str, Any]) -> tuple[int, int, bytes]:
    """Decode, turn upright, resize and encode. Of an animation the first frame is taken; metadata is left behind."""
    from PIL import Image, ImageOps  # after the limits, so that they hold for the libraries' own start too

    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    # Pillow warns above the bound and raises only above twice the bound.
    warnings.simplefilter("error", Image.DecompressionBombWarning)
    with Image.open(io.BytesIO(data), formats=("JPEG", "PNG", "WEBP")) as source:
        box = (order["width"], order["height"])
        # A JPEG decodes at a fraction of its size when that is enough: a large photo in a tenth of the time. Square, since the
        # camera's rotation is applied later.
        source.draft("RGB", (max(box), max(box)))
        profile = source.info.get("icc_profile") if source.mode in ("RGB", "RGBA") else None
        image = ImageOps.exif_transpose(source)
        transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        image = image.convert("RGBA" if transparent else "RGB")
    if order["fit"] == "cover":
        image = ImageOps.fit(image, box, method=Image.Resampling.LANCZOS)
    else:
        image.thumbnail(box, Image.Resampling.LANCZOS)
    if order["format"] == "jpeg" and transparent:
        white = Image.new("RGB", image.size, "white")
        white.paste(image, mask=image.getchannel("A"))
        image = white
    options: dict[str, Any] = {"optimize": True} if order["format"] == "png" else {"quality": order["quality"]}
    image.info.clear()
    answer = io.BytesIO()
    image.save(answer, order["format"].upper(), icc_profile=profile, **options)
    return image.width, image.height, answer.getvalue()


def main() -> None:
    limit_resources()
    order = json.loads(sys.argv[1])
    data = sys.stdin.buffer.read()
    try:
        width, height, answer = convert(data, order)
    except MemoryError:
        refuse("needs more memory than one image may have")
    except Exception as error:  # whatever a decoder raises, the image is at fault; the parent turns this into a dead letter
        refuse(f"{type(error).__name__}: {error}")
    sys.stdout.buffer.write(json.dumps({"width": width, "height": height}).encode() + b"\n" + answer)
    sys.stdout.buffer.flush()


def refuse(reason: str) -> NoReturn:
    """Say why on standard error, without the in-memory addresses that Pillow likes to print, and end."""
    sys.stderr.write(reason.partition(" <_io.")[0][:300])
    sys.stderr.flush()
    sys.exit(REFUSED)


if __name__ == "__main__":
    main()
