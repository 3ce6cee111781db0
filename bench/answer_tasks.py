"""The tasks of bench/answer.py: small data sets made from what package registries have.

Solar cells (PyPI), emoji as several designers drew them (npm), and letters in the typefaces of
Debian's packages. `make_tasks` downloads and draws them into a folder; nothing of them is part of
this repository.
"""

import csv
import json
import random
import shutil
import subprocess
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from tvf.data.sources.elpv import infer_modules

DESIGNERS = ("twitter", "google", "apple")
EMOJI_VERSION = "16.0.0"
EMOJI = 900  # of about 1,900, each by every designer
# Debian's packages of typefaces with Latin letters: text, display, handwriting, screens.
TYPEFACES = """
adf-accanthis adf-baskervald adf-gillius adf-irianis adf-libris adf-romande adf-switzera adf-tribun
adf-universalis adf-verana allerta anonymous-pro bebas-neue breip cabin cantarell century-catalogue
comfortaa comic-neue courier-prime dancingscript dkg-handwriting dosis ebgaramond ecolier-court
essays1743 fantasque-sans firacode go gotico-antiqua goudybookletter hack-ttf humor-sans inconsolata
inter isabella junction junicode jura karla kristi lato levien-typoscript liberation2 linuxlibertine
lobster lobstertwo mononoki ocr-a oldstandard open-sans play prociono quattrocento quicksand
roboto-slab rufscript sil-andika sil-charis sixtyfour tomsontalks urw-base35 vollkorn
yanone-kaffeesatz
""".split()
FACES = 2  # of each family
FEW = 400  # training images
KINDS = {  # and the pixels of their larger images
    "binary": 96,
    "four_class": 96,
    "mono": 96,
    "poly": 96,
    "emoji": 64,
    "domain": 64,
    "letters": 64,
}
LABELS = "labels.csv"
LETTERS = "abcdefghijklmnopqrstuvwxyz"
Row = tuple[str, ...]  # place of the image, label, group, and perhaps split


@dataclass(frozen=True)
class Task:
    """A data set at one size: the overrides of all its jobs."""

    name: str
    overrides: tuple[str, ...]


def make_tasks(folder: Path) -> list[Task]:
    """Make what is not yet in `folder`, and return the tasks."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind, make in {
        "mono": lambda place: make_cells(place, "mono"),
        "poly": lambda place: make_cells(place, "poly"),
        "emoji": make_emoji,
        "letters": make_letters,
    }.items():
        if not (folder / kind / LABELS).exists():
            (folder / kind).mkdir(exist_ok=True)
            make(folder / kind)
    return [
        _make_task(folder, kind, pixels, limit)
        for kind, largest in KINDS.items()
        for pixels, limit in ((64, FEW), (largest, None))
    ]


def _make_task(folder: Path, kind: str, pixels: int, limit: int | None) -> Task:
    if kind in ("binary", "four_class"):
        source = ["data=elpv", f"data.task={kind}"]
    else:
        table = folder / "emoji" / "domain.csv" if kind == "domain" else folder / kind / LABELS
        source = ["data=table", f"data.path={table}"]
    size = [] if limit is None else [f"data.train_limit={limit}"]
    # With few images an epoch has few steps.
    epochs = f"epochs={4 if limit is None else 8}"
    name = f"{kind}, {pixels} px, {limit or 'all'}"
    return Task(name, (*source, f"data.image_size={pixels}", *size, epochs))


def make_cells(folder: Path, cell_type: str) -> None:
    """List the solar cells of one type, defective or not; the inferred module is the group."""
    spec = find_spec("elpv_dataset")
    assert spec and spec.origin, "pip install 'tvf[demo]'"
    data = Path(spec.origin).parent / "data"
    table = np.genfromtxt(data / "labels.csv", dtype=None, encoding="utf-8")
    modules = infer_modules(np.array([row[2] == "mono" for row in table]))
    rows = [
        (str(data / path), "defective" if probability >= 0.5 else "functional", f"m{module}")
        for (path, probability, kind), module in zip(table, modules, strict=True)
        if kind == cell_type
    ]
    _write_table(folder / LABELS, rows)


def make_emoji(folder: Path) -> None:
    """Unpack emoji on white; the class is the Unicode category, the group the emoji.

    In a second table the test images are of another domain: the last designer's, of emoji whose
    pictures by the others are left out.
    """
    chosen: list[dict[str, str]] = []
    rows: list[Row] = []
    domain: list[Row] = []
    for designer in DESIGNERS:
        package = f"emoji-datasource-{designer}"
        subprocess.run(
            ["npm", "pack", "--silent", f"{package}@{EMOJI_VERSION}"], cwd=folder, check=True
        )
        archive = folder / f"{package}-{EMOJI_VERSION}.tgz"
        with tarfile.open(archive) as tar:
            if not chosen:
                chosen = _choose_emoji(json.load(_member(tar, "package/emoji.json")))
            for number, emoji in enumerate(chosen):
                source = _member(tar, f"package/img/{designer}/64/{emoji['image']}")
                picture = Image.open(source).convert("RGBA")
                white = Image.new("RGBA", picture.size, "white")
                white.alpha_composite(picture)
                place = Path(designer) / emoji["image"]
                (folder / designer).mkdir(exist_ok=True)
                white.convert("RGB").save(folder / place)
                rows.append((str(place), emoji["category"], emoji["unified"]))
                if (number % 3 == 0) == (designer == DESIGNERS[-1]):
                    split = "train" if number % 3 else "test"
                    domain.append((*rows[-1], split))
        archive.unlink()
    _write_table(folder / "domain.csv", domain)
    _write_table(folder / LABELS, rows)


def _choose_emoji(emoji: list[dict[str, str]]) -> list[dict[str, str]]:
    everywhere = [
        each
        for each in sorted(emoji, key=lambda each: each["unified"])
        if each["category"] != "Component" and all(each[f"has_img_{name}"] for name in DESIGNERS)
    ]
    return random.Random(0).sample(everywhere, EMOJI)


def _member(tar: tarfile.TarFile, name: str) -> IO[bytes]:
    found = tar.extractfile(name)
    assert found, name
    return found


def make_letters(folder: Path) -> None:
    """Draw letters in some typefaces; the class is the letter, the group the family."""
    rows = []
    for family in TYPEFACES:
        package = f"fonts-{family}"
        subprocess.run(
            ["apt-get", "download", "-q", package], cwd=folder, check=True, capture_output=True
        )
        (archive,) = folder.glob(f"{package}_*.deb")
        unpacked = folder / "unpacked" / family
        unpacked.mkdir(parents=True, exist_ok=True)
        subprocess.run(["dpkg-deb", "-x", str(archive), str(unpacked)], check=True)
        archive.unlink()
        rng = random.Random(family)
        faces = sorted(path for end in ("otf", "ttf", "t1") for path in unpacked.rglob(f"*.{end}"))
        for number, face in enumerate(rng.sample(faces, min(FACES, len(faces)))):
            for letter in LETTERS:
                place = f"{family}-{number}-{letter}.png"
                if _draw_letter(face, letter, rng, folder / place):
                    rows.append((place, letter, family))
    shutil.rmtree(folder / "unpacked")
    _write_table(folder / LABELS, rows)


def _draw_letter(face: Path, letter: str, rng: random.Random, file: Path) -> bool:
    """Draw a letter in the middle of 64 x 64 pixels; return whether the typeface has it."""
    font = ImageFont.truetype(face, rng.randint(28, 52))
    drawn, missing = (np.asarray(font.getmask(text), np.uint8) for text in (letter, "\uffff"))
    if not drawn.any() or np.array_equal(drawn, missing):
        return False
    dark, light = rng.randint(0, 110), rng.randint(150, 255)
    picture = Image.new("RGB", (64, 64), (light,) * 3)
    ImageDraw.Draw(picture).text((32, 32), letter, fill=(dark,) * 3, font=font, anchor="mm")
    picture.save(file)
    return True


def _write_table(file: Path, rows: Sequence[Row]) -> None:
    with file.open("w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(["image", "label", "group", "split"][: len(rows[0])])
        writer.writerows(rows)
