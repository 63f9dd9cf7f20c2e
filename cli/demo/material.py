"""What the demo's jobs work on: a photo-like picture and a CSV file with some wrong lines, both made by code."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass
from typing import Final

from PIL import Image, ImageDraw, ImageFilter

#: Where the demo's contacts live: RFC 2606 keeps ``.example`` free of real mailboxes.
DOMAIN: Final = "switchyard-demo.example"
#: Records in the CSV file; every 400th is wrong.
RECORDS: Final = 5_000
_WRONG_EVERY: Final = 400

_FIRST: Final = ("Ada", "Grace", "Edsger", "Barbara", "Donald", "Radia", "Leslie", "Tony", "Frances", "Ken")
_LAST: Final = ("Lovelace", "Hopper", "Dijkstra", "Liskov", "Knuth", "Perlman", "Lamport", "Hoare", "Allen", "Thompson")
_COMPANIES: Final = ("Northwind", "Initech, Inc.", "Acme", "Ünal & Söhne", "Globex")


@dataclass(frozen=True, slots=True, kw_only=True)
class Contacts:
    """A CSV file, and what an import of it has to come to."""

    csv: bytes
    records: int
    wrong: int


def photo(seed: int, width: int = 1_800, height: int = 1_200) -> bytes:
    """A landscape at dusk as JPEG, with a photo's grain and gradients; another ``seed``, other mountains."""
    chance = random.Random(seed)  # noqa: S311 - mountains are no secret
    ramp = Image.linear_gradient("L").resize((width, height))
    picture = Image.composite(Image.new("RGB", ramp.size, (250, 176, 110)), Image.new("RGB", ramp.size, (38, 52, 104)), ramp)
    draw = ImageDraw.Draw(picture)
    sun = (width * 0.68, height * 0.42, height * 0.07)
    draw.ellipse((sun[0] - sun[2], sun[1] - sun[2], sun[0] + sun[2], sun[1] + sun[2]), fill=(255, 238, 200))
    picture = picture.filter(ImageFilter.GaussianBlur(height / 150))
    draw = ImageDraw.Draw(picture)
    for layer in range(4):
        base, shade = height * (0.55 + 0.11 * layer), 96 - 22 * layer
        ridge = [(x, base - chance.uniform(0, height * 0.13)) for x in range(0, width + 90, 90)]
        draw.polygon([(0, height), *ridge, (width, height)], fill=(shade, shade // 2 + 14, shade // 2 + 40))
    grain = Image.effect_noise(picture.size, 22).convert("RGB")
    file = io.BytesIO()
    Image.blend(picture.filter(ImageFilter.GaussianBlur(1)), grain, 0.07).save(file, "JPEG", quality=92)
    return file.getvalue()


def contacts(run: str) -> Contacts:
    """A CSV file of contacts. Its addresses are the same in every run, so that running again updates them."""
    lines, wrong = ["email,name,company,phone"], 0
    for number in range(1, RECORDS + 1):
        first, last = _FIRST[number % len(_FIRST)], _LAST[number // len(_FIRST) % len(_LAST)]
        address = f"{first}.{last}.{number:04}@{DOMAIN}".lower()
        company = _COMPANIES[number % len(_COMPANIES)]
        line = f'{address},{first} {last},"{company}",+1 555 {number:04}'
        if number % _WRONG_EVERY == 0:
            wrong += 1
            line = (f"no address,{first} {last},,", f"{address},,,", f"{line},one,too,many")[wrong % 3]
        lines.append(line)
    # The file is recognised by its content, and a run should not meet the one of the run before.
    lines[1] = lines[1].rsplit(",", 1)[0] + f",run {run}"
    return Contacts(csv=("\n".join(lines) + "\n").encode(), records=RECORDS, wrong=wrong)
