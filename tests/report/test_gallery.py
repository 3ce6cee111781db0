"""The images on the page: pixels of the files as they are now, whatever happened to them."""

import io
import re
from base64 import b64decode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.sweeps import add_folder_job, add_predictions
from tvf.data import Catalog, ImageFolder
from tvf.data.pool import digest
from tvf.records import read_sweep
from tvf.report.comparison import compare
from tvf.report.formats import render_report
from tvf.report.gallery import BYTES, SIDE, collect_gallery

GREY = "Grey boxes: of 4 images, "
DOG = "train/dog/0.png"  # the test image


def write_data(root: Path, names: Sequence[str], side: int = 40) -> None:
    """A folder of two classes with noise under these names, below train/cat, and one dog."""
    rng = np.random.default_rng(0)
    for name in (*names, DOG):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 256, (side, side, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(path)


def add_mistakes(sweep: Path, root: Path, names: Sequence[str], **options: Any) -> None:
    """A job for which these images are mistakes, the first the most probable one."""
    folder = add_folder_job(sweep, root, **{"image_size": 32, **options})
    images = {name: (1, [0.9 - number / 1e4, 0.1]) for number, name in enumerate(names)}
    shown = [*names, DOG]
    content = {name: digest((root / name).read_bytes()) for name in shown if (root / name).exists()}
    add_predictions(folder, images, {DOG: (1, [0.1, 0.9])}, digests=content)


def gallery(sweep: Path, budget: int = BYTES) -> dict[str, Any]:
    (comparison,) = compare(read_sweep(sweep))
    found = collect_gallery(comparison, comparison.configurations[0], budget)
    assert found
    return found


def pictures(found: Mapping[str, Any]) -> dict[str, str | None]:
    """The thumbnails of the first list, by name."""
    return {image["name"]: image["picture"] for image in found["splits"][0]["lists"][0]["images"]}


def decode(uri: str | None) -> Image.Image:
    assert uri
    kind, _, content = uri.partition(",")
    assert kind == "data:image/jpeg;base64"
    return Image.open(io.BytesIO(b64decode(content)))


NAMES = [f"train/cat/{number}.png" for number in range(3)]


@pytest.mark.parametrize(("size", "shown"), [(32, 32), (224, SIDE)])
def test_thumbnails_are_the_images_in_the_trained_size_or_smaller(
    tmp_path: Path, size: int, shown: int
) -> None:
    write_data(tmp_path / "data", NAMES, side=250)
    add_mistakes(tmp_path / "sweep", tmp_path / "data", NAMES, image_size=size)
    found = gallery(tmp_path / "sweep")
    assert found["problem"] == ""
    assert [*pictures(found)] == NAMES
    for name, uri in pictures(found).items():
        thumbnail = decode(uri)
        assert thumbnail.size == (shown, shown)
        with Image.open(tmp_path / "data" / name) as original:
            expected = original.resize((size, size), Image.Resampling.BILINEAR)
        expected.thumbnail((SIDE, SIDE), Image.Resampling.BILINEAR)
        difference = np.abs(np.asarray(thumbnail, float) - np.asarray(expected, float))
        assert difference.mean() < 25  # noise survives JPEG only roughly


def _remove(path: Path) -> None:
    path.unlink()


def _damage(path: Path) -> None:
    path.write_bytes(b"no image")


def _repaint(path: Path) -> None:
    Image.new("RGB", (40, 40), "red").save(path)


@pytest.mark.parametrize("change", [_remove, _damage, _repaint])
def test_images_that_are_gone_or_changed_are_grey_and_the_others_are_shown(
    tmp_path: Path, change: Any
) -> None:
    write_data(tmp_path / "data", NAMES)
    add_mistakes(tmp_path / "sweep", tmp_path / "data", NAMES)
    change(tmp_path / "data" / NAMES[1])
    found = gallery(tmp_path / "sweep")
    assert [uri is None for uri in pictures(found).values()] == [False, True, False]
    assert found["problem"] == (
        f"{GREY}1 is no longer there, unreadable, or changed since the training."
    )


def test_data_that_are_elsewhere_leave_a_page_of_grey_boxes(tmp_path: Path) -> None:
    add_mistakes(tmp_path / "sweep", tmp_path / "gone", NAMES)
    page = render_report([tmp_path / "sweep"], read_sweep(tmp_path / "sweep"), "html")
    text = page["report.html"].decode()
    assert "The images cannot be shown, so there are grey boxes instead: data.root=" in text
    assert text.count('<div class="gone">') == 7 and "data:image" not in text
    assert "train/<wbr>cat/<wbr>0.png" in text


@dataclass(frozen=True, kw_only=True)
class Broken(ImageFolder):
    """A user's data source that fails in its own way."""

    def catalog(self) -> Catalog:
        raise ZeroDivisionError


@dataclass(frozen=True, kw_only=True)
class Downloads(ImageFolder):
    """Wants the network, unless told otherwise."""

    download: bool = True

    def catalog(self) -> Catalog:
        assert not self.download, "it downloads"
        return super().catalog()


@dataclass(frozen=True, kw_only=True)
class Short(ImageFolder):
    """Reads fewer images than it is asked for."""

    def catalog(self) -> Catalog:
        whole = super().catalog()
        return replace(whole, read=lambda places, *how: whole.read(places[1:], *how))


def run_code(**options: Any) -> None:
    """What a report must not call."""
    raise AssertionError("called")


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"_target_": f"{__name__}.Broken"}, "ZeroDivisionError"),
        ({"_target_": f"{__name__}.Short"}, "4 are no longer there, unreadable, or changed"),
        ({"_target_": "nowhere.Source"}, "put the folder of its module on PYTHONPATH"),
        ({"_target_": f"{__name__}.run_code"}, "plain data sources only"),
        ({"groups": {"_target_": f"{__name__}.run_code"}}, "plain data sources only"),
    ],
)
def test_a_data_source_that_fails_or_is_none_costs_the_pictures_alone(
    tmp_path: Path, options: dict[str, Any], reason: str
) -> None:
    write_data(tmp_path / "data", NAMES)
    add_mistakes(tmp_path / "sweep", tmp_path / "data", NAMES, **options)
    found = gallery(tmp_path / "sweep")
    assert reason in found["problem"] and {*pictures(found).values()} == {None}


def test_nothing_is_downloaded_for_a_page(tmp_path: Path) -> None:
    write_data(tmp_path / "data", NAMES)
    target = f"{__name__}.Downloads"
    add_mistakes(tmp_path / "sweep", tmp_path / "data", NAMES, _target_=target, download=True)
    found = gallery(tmp_path / "sweep")
    assert found["problem"] == "" and all(pictures(found).values())


def test_hostile_names_are_text(tmp_path: Path) -> None:
    names = ["train/cat/\"><script>alert('x')</script>.png", "train/cat/{{ 7*7 }}&lt;.png"]
    write_data(tmp_path / "data", ["train/cat/0.png"])
    add_mistakes(tmp_path / "sweep", tmp_path / "data", names)
    rows = read_sweep(tmp_path / "sweep")
    page = render_report([tmp_path / "sweep"], rows, "html")["report.html"].decode()
    assert "<script>alert" not in page and 'title="train/cat/"' not in page
    assert "&lt;script&gt;alert(&#39;x&#39;)&lt;" in page and "{{ 7*7 }}&amp;lt;.png" in page


def test_thumbnails_are_compressed_and_then_left_out_to_fit(tmp_path: Path) -> None:
    write_data(tmp_path / "data", NAMES, side=96)
    add_mistakes(tmp_path / "sweep", tmp_path / "data", NAMES, image_size=96)

    def size(found: Mapping[str, Any]) -> int:
        lists = found["splits"][0]["lists"]
        return sum(len(image["picture"] or "") for each in lists for image in each["images"])

    whole = gallery(tmp_path / "sweep")
    smaller = gallery(tmp_path / "sweep", budget=size(whole) // 2)
    assert size(smaller) <= size(whole) // 2 and smaller["problem"] == ""
    few = gallery(tmp_path / "sweep", budget=size(whole) // 5)
    assert 0 < size(few) <= size(whole) // 5
    assert pictures(few)[NAMES[0]]  # the most confident mistake stays
    assert re.fullmatch(GREY + "[23] are left out to keep the page small.", few["problem"])
    assert size(gallery(tmp_path / "sweep", budget=10)) == 0


@pytest.mark.slow
def test_a_page_of_50_jobs_with_144_noisy_images_is_under_5_megabytes(tmp_path: Path) -> None:
    """The worst case of JPEG: noise, and lists that share no image."""
    root, sweep = tmp_path / "data", tmp_path / "sweep"
    names = [f"train/cat/{number:03}.png" for number in range(180)]
    write_data(root, names, side=224)
    digests = {name: digest((root / name).read_bytes()) for name in names}
    for number in range(50):
        scores = [0.5 + number / 200 + epoch / 400 for epoch in range(30)]
        folder = add_folder_job(sweep, root, number % 10 / 9, number // 10, scores)
        defends = number == 7
        val, test = (_third_by_third(some, defends) for some in (names[:90], names[90:]))
        add_predictions(folder, val, test, digests)
    page = render_report([sweep], read_sweep(sweep), "html")["report.html"].decode()
    thumbnails = re.findall(r'src="(data:image/jpeg[^"]*)"', page)
    assert len(thumbnails) == len({*thumbnails}) == 144
    assert sum(map(len, thumbnails)) <= BYTES and len(page) < 5_000_000


def _third_by_third(names: Sequence[str], defends: bool) -> dict[str, tuple[int, list[float]]]:
    """Uncertain images, mistakes of all trainings but one that `defends` the label, and of all."""
    rows = ((0, [0.51, 0.49]), (int(not defends), [0.9, 0.1]), (1, [0.8, 0.2]))
    third = len(names) // 3
    return {name: rows[place // third] for place, name in enumerate(names)}
