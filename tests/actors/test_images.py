"""process_image with real pictures, real bombs, and a child process that dies."""

from __future__ import annotations

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from PIL import Image, ImageCms

import switchyard
from actors import images, process_image
from actors.outbound import Unreachable
from actors.storage import storage
from switchyard import Permanent
from tests.actors.conftest import Deploy
from tests.actors.servers import Answer, HttpServer

JOB = "0190d5a4-7b1e-7c3a-9f00-000000000002"
RED, BLUE = (200, 30, 30), (30, 30, 200)


def picture(size: tuple[int, int] = (400, 200), format: str = "PNG", mode: str = "RGB", **options: Any) -> bytes:
    """A picture whose left half is red and whose right half is blue."""
    image = Image.new(mode, size, RED if mode == "RGB" else 0)
    if mode == "RGB":
        image.paste(BLUE, (size[0] // 2, 0, *size))
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def run(source: str, width: int = 100, height: int = 100, **kwargs: Any) -> dict[str, Any]:
    with switchyard.job_context(id=JOB, attempt=1):
        result: dict[str, Any] = process_image(source, width, height, **kwargs)
    return result


def stored(result: dict[str, Any]) -> Image.Image:
    data = storage().get(result["key"], limit=100_000_000)
    assert len(data) == result["bytes"]
    image = Image.open(io.BytesIO(data))
    image.load()
    assert image.size == (result["width"], result["height"])
    return image


@pytest.mark.parametrize("format", ["jpeg", "png", "webp"])
@pytest.mark.parametrize("given", ["JPEG", "PNG", "WEBP"])
def test_every_format_becomes_every_other(given: str, format: str, deploy: Deploy) -> None:
    deploy()
    storage().put("uploads/a", picture(format=given))

    result = run("uploads/a", format=format)

    image = stored(result)
    assert (image.format, image.size, result["key"]) == (format.upper(), (100, 50), f"images/{JOB}.{format}")
    assert image.convert("RGB").getpixel((10, 10)) == pytest.approx(RED, abs=12)
    assert image.convert("RGB").getpixel((90, 40)) == pytest.approx(BLUE, abs=12)


def test_cover_fills_the_box_and_contain_enlarges_nothing(deploy: Deploy) -> None:
    deploy()
    storage().put("a", picture((40, 20)))

    assert stored(run("a", 100, 100, fit="cover")).size == (100, 100)
    assert stored(run("a", 100, 100, fit="contain")).size == (40, 20)


def test_a_picture_is_turned_upright_and_loses_its_metadata(deploy: Deploy) -> None:
    deploy()
    exif = Image.Exif()
    exif[0x0112], exif[0x010F] = 6, "Camera of Ada"
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    storage().put("a", picture((400, 200), "JPEG", exif=exif.tobytes(), icc_profile=profile, comment=b"by Ada", quality=95))

    image = stored(run("a", format="jpeg"))

    assert image.size == (50, 100)
    assert image.convert("RGB").getpixel((25, 10)) == pytest.approx(RED, abs=12)
    assert not image.getexif()
    assert "comment" not in image.info
    assert image.info["icc_profile"] == profile


def test_transparency_is_kept_or_becomes_white(deploy: Deploy) -> None:
    deploy()
    storage().put("a", picture(mode="RGBA"))

    assert stored(run("a", format="png")).getpixel((5, 5)) == (0, 0, 0, 0)
    assert stored(run("a", format="jpeg")).getpixel((5, 5)) == (255, 255, 255)


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "I;16", "CMYK"])
def test_every_colour_mode_is_read(mode: str, deploy: Deploy) -> None:
    deploy()
    storage().put("a", picture(mode=mode, format="JPEG" if mode == "CMYK" else "PNG"))

    for format in ("jpeg", "png", "webp"):
        assert stored(run("a", format=format)).size == (100, 50)


def test_a_picture_is_fetched_from_a_url(deploy: Deploy, http_server: HttpServer) -> None:
    deploy(outbound_allow=http_server.pair)
    http_server.answers = [Answer(body=picture())]

    with switchyard.job_context(id=JOB, attempt=1) as job:
        result = process_image(http_server.url("/a.png"), 100, 100)

    assert stored(result).size == (100, 50)
    assert [stage for _, stage in job.progress_calls] == ["fetch", "resize", "store", "done"]


def test_a_url_that_leads_inside_is_refused(deploy: Deploy, http_server: HttpServer) -> None:
    deploy()

    with pytest.raises(Permanent):
        run(http_server.url())
    with pytest.raises(Permanent):
        run("file:///etc/passwd")

    assert http_server.requests == []


@pytest.mark.parametrize(
    ("status", "error"), [(404, Permanent), (403, Permanent), (429, Unreachable), (500, Unreachable), (503, Unreachable)]
)
def test_the_source_s_status_decides_whether_another_attempt_can_help(
    status: int, error: type[Exception], deploy: Deploy, http_server: HttpServer
) -> None:
    deploy(outbound_allow=http_server.pair)
    http_server.answers = [Answer(status, body=b"internal secret")]

    with pytest.raises(error, match=str(status)) as caught:
        run(http_server.url())

    assert "secret" not in str(caught.value)


def test_a_source_above_10_mb_is_refused(deploy: Deploy, http_server: HttpServer) -> None:
    deploy(outbound_allow=http_server.pair)
    http_server.answers = [Answer(body=bytes(10_000_001))]
    storage().put("big", bytes(10_000_001))

    for source in (http_server.url(), "big"):
        with pytest.raises(Permanent, match="10,000,000 bytes"):
            run(source)


def png_bomb(width: int, height: int) -> bytes:
    """A valid PNG of a few kilobytes that unpacks to ``width`` x ``height`` pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    packer, packed = zlib.compressobj(9), b""
    for _ in range(height):
        packed += packer.compress(bytes(1 + width // 8))
    head = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", packed + packer.flush()) + chunk(b"IEND", b"")


@pytest.mark.parametrize("side", [8_000, 12_000])
def test_a_pixel_bomb_is_refused(side: int, deploy: Deploy) -> None:
    deploy()
    bomb = png_bomb(side, side)
    assert len(bomb) < 100_000
    storage().put("bomb", bomb)

    with pytest.raises(Permanent, match="DecompressionBomb"):
        run("bomb")

    assert not (switchyard.settings().data_dir / "storage" / "images").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no picture at all",
        b"GIF89a" + bytes(100),
        b"%!PS-Adobe-3.0 EPSF-3.0\n",
        b'<svg xmlns="http://www.w3.org/2000/svg"/>',
        picture()[:200],
        picture(format="JPEG", quality=95)[:700],
        picture(format="WEBP")[:60],
        picture(format="GIF"),
        picture(format="TIFF"),
        b"\x89PNG\r\n\x1a\n" + bytes(64),
    ],
    ids=["empty", "text", "gif head", "postscript", "svg", "png cut", "jpeg cut", "webp cut", "gif", "tiff", "png head"],
)
def test_what_is_no_whole_jpeg_png_or_webp_is_refused(data: bytes, deploy: Deploy) -> None:
    deploy()
    storage().put("a", data)

    with pytest.raises(Permanent, match="cannot be used as an image") as caught:
        run("a")

    assert "0x" not in str(caught.value)


@pytest.mark.parametrize("wrong", [{"width": 0}, {"height": 8_001}, {"width": -1}, {"quality": 0}, {"quality": 96}])
def test_a_parameter_out_of_range_is_refused(wrong: dict[str, int], deploy: Deploy) -> None:
    deploy()

    with pytest.raises(Permanent, match=next(iter(wrong))):
        run("a", **{"width": 10, "height": 10, **wrong})


def child_that(body: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script in the decoding child's place that limits itself as the real one does, then does ``body``."""
    script = tmp_path / "child.py"
    script.write_text(
        f"import importlib.util, os, sys\nspec = importlib.util.spec_from_file_location('real', {str(images._CHILD)!r})\n"
        "real = importlib.util.module_from_spec(spec)\nspec.loader.exec_module(real)\n"
        f"def convert(data, order):\n    {body}\nreal.convert = convert\nreal.main()\n"
    )
    monkeypatch.setattr(images, "_CHILD", script)


@pytest.mark.parametrize(
    ("body", "error", "text"),
    [
        ("return 0, 0, bytes(2 ** 30)", Permanent, "memory"),
        ("import resource; resource.setrlimit(resource.RLIMIT_CPU, (1, 31))\n    while True: pass", Permanent, "processor time"),
        ("os.kill(os.getpid(), 11)", images.ChildCrashed, "-11"),
        ("os._exit(7)", images.ChildCrashed, "code 7"),
        ("os.write(os.open('made', os.O_CREAT | os.O_WRONLY), b'x')", Permanent, "OSError"),
    ],
    ids=["memory", "processor", "segmentation fault", "exit", "file"],
)
def test_a_decoder_gone_wild_harms_its_own_process_only(
    body: str, error: type[Exception], text: str, deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deploy()
    storage().put("a", picture())
    child_that(body, tmp_path, monkeypatch)
    monkeypatch.chdir(tmp_path)

    with pytest.raises(error, match=text):
        run("a")


def test_a_decoder_that_hangs_is_killed(deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy()
    storage().put("a", picture())
    child_that("import signal; signal.pause()", tmp_path, monkeypatch)
    monkeypatch.setattr(images, "CHILD_TIMEOUT", 1.0)

    with pytest.raises(images.ChildCrashed, match="not decoded within"):
        run("a")


def test_the_child_inherits_no_secrets(deploy: Deploy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deploy()
    storage().put("a", picture())
    monkeypatch.setenv("DATABASE_URL", "postgresql://u:secret@h/d")
    child_that("raise ValueError(sorted(os.environ))", tmp_path, monkeypatch)

    with pytest.raises(Permanent) as caught:
        run("a")

    names = json.loads(str(caught.value).split("ValueError: ")[1].replace("'", '"'))
    assert set(names) <= {"PYTHONPATH", "PYTHONDONTWRITEBYTECODE", "LC_CTYPE"}
