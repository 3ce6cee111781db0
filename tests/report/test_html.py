"""report.html in a browser: what a reader sees and does, light and dark, on a desktop and a phone.

Uses a Chromium from the PATH, or the one that `playwright install chromium` installed.
"""

import os
import re
import shutil
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, Error, Page, sync_playwright

from helpers.folders import write_images
from helpers.sweeps import add_curves, add_folder_job, add_job, add_predictions
from tvf.data.pool import digest
from tvf.records.rows import read_sweep
from tvf.report.formats import render_report, write_files
from tvf.report.palette import COLOURS

pytestmark = pytest.mark.slow

NAMES = ("chromium", "chromium-browser", "google-chrome")
QUIET = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
]
SCORES = {
    0.0: [0.80, 0.81, 0.82],
    0.25: [0.86, 0.87, 0.87],
    0.5: [0.88, 0.89, 0.90],
    1.0: [0.85, 0.87, 0.86],
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        found = os.environ.get("TVF_TEST_BROWSER") or next(
            filter(None, map(shutil.which, NAMES)), None
        )
        try:
            browser = playwright.chromium.launch(executable_path=found, args=QUIET)
        except Error as error:
            if found:
                raise
            pytest.skip(
                f"there is no Chromium: playwright install chromium ({str(error).splitlines()[0]})"
            )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Four fractions with three seeds, and jobs that failed, wait, or have a hostile name."""
    sweep = tmp_path_factory.mktemp("sweep")
    for fraction, scores in SCORES.items():
        for seed, score in enumerate(scores, 1):
            url = f"https://wandb.example/runs/{fraction}-{seed}"
            add_job(
                sweep,
                fraction,
                seed,
                [score - 0.1, score - 0.02, score, score - 0.01],
                wandb_url=url,
            )
    add_job(sweep, 0.25, 4, [0.7], state="failed", epochs=4)
    add_job(sweep, 1.0, 5, state="waiting", epochs=4)
    hostile = add_job(sweep, 1.0, 6, epochs=4, wandb_url="javascript:alert(1)")
    status = (
        (hostile / "status.json")
        .read_text()
        .replace("fine-tuning-1.0-seed6", "</script><script>x()</script>")
    )
    (hostile / "status.json").write_text(status)
    (path,) = write_files(render_report([sweep], read_sweep(sweep), "html"), sweep)
    return path


class Reader:
    """An open page, and everything that went wrong on it."""

    def __init__(self, page: Page, path: Path) -> None:
        self.page, self.complaints = page, list[str]()
        page.on("console", lambda message: self.complaints.append(message.text))
        page.on("pageerror", lambda error: self.complaints.append(str(error)))
        page.on("request", lambda request: self._note(request.url))
        page.goto(path.as_uri())
        page.wait_for_function(
            "document.querySelectorAll('svg.marks').length"
            " === document.querySelectorAll('.chart').length"
        )

    def _note(self, url: str) -> None:
        if not url.startswith(("file:", "data:", "blob:")):
            self.complaints.append(f"asked for {url}")

    def column(self, table: str, heading: str) -> list[str]:
        """The text of a table's column, from top to bottom."""
        return self.page.evaluate(
            """([table, heading]) => {
                const all = what => [...document.querySelectorAll(`#${table} ${what}`)];
                const index = all("th").findIndex(cell => cell.innerText.trim() === heading);
                return all("tbody tr").map(row => row.cells[index].innerText.trim());
            }""",
            [table, heading],
        )


@pytest.fixture
def reader(browser: Browser, report: Path) -> Iterator[Reader]:
    page = browser.new_page(viewport={"width": 1280, "height": 900})
    yield Reader(page, report)
    page.close()


def test_it_is_one_small_file_without_requests_or_errors(reader: Reader, report: Path) -> None:
    assert reader.complaints == []
    assert report.stat().st_size < 5_000_000
    assert "train pct_unfreeze=0.5" in reader.page.inner_text(".choice")


def test_every_chart_is_drawn_with_axis_titles(reader: Reader) -> None:
    charts = {
        # Marks: means and seeds; means and rings; points and their hover marks; pairs.
        "score": (
            4 + 13,
            ["fraction of the groups that trains (pct_unfreeze)", "validation accuracy"],
        ),
        "cost": (4 + 3, ["own training seconds per job (log scale)", "validation accuracy"]),
        "curves": (2 * 4 * 2 * 4, ["epoch", "accuracy"]),
        "losses": (2 * 4 * 2 * 4, ["epoch", "loss (cross-entropy)"]),
        "differences": (6, ["difference in validation accuracy"]),
        "confusion": (0, ["predicted", "true"]),
    }
    assert reader.page.locator(".chart").count() == len(charts)
    for name, (marks, titles) in charts.items():
        chart = reader.page.locator(f"#part0-{name} svg.marks")
        assert chart.locator(".mark-symbol.role-mark path").count() == marks, name
        box = chart.bounding_box()
        assert box and box["width"] > 400 and box["height"] > 150
        written = chart.locator(".role-axis-title").all_text_contents()
        assert [*filter(None, written)] == titles, name
    assert reader.page.locator("#part0-curves .mark-line.role-mark path").count() > 8


def test_a_fraction_has_one_colour_everywhere(reader: Reader) -> None:
    for name in ("score", "cost", "curves"):
        used = reader.page.evaluate(
            """name => [...document.querySelectorAll(`#part0-${name} .mark-symbol.role-mark path`)]
                .map(path => ["aria-label", "fill", "stroke"]
                    .map(attribute => path.getAttribute(attribute)))""",
            name,
        )
        marks = [
            (re.search(r"pct_unfreeze: ([\d.]+)", label or ""), {fill, stroke})
            for label, fill, stroke in used
        ]
        seen = {
            (float(found[1]), colour)
            for found, both in marks
            if found
            for colour in both & {*COLOURS.values()}
        }
        assert seen == {(fraction, COLOURS[fraction]) for fraction in SCORES}, name
    swatch = reader.page.locator("#part0-overview tr.chosen .swatch").get_attribute("style")
    assert swatch and COLOURS[0.5] in swatch


def test_tables_sort_by_their_headings(reader: Reader) -> None:
    heading = reader.page.locator("#part0-overview th button", has_text="validation accuracy")
    heading.click()
    scores = [float(value) for value in reader.column("part0-overview", "validation accuracy")]
    assert scores == sorted(scores) and len(scores) == 4
    heading.click()
    assert [
        float(value) for value in reader.column("part0-overview", "validation accuracy")
    ] == scores[::-1]
    jobs = reader.page.locator("#part0-jobs th button", has_text="validation")
    for order in ("ascending", "descending"):
        jobs.click()
        assert (
            reader.page.locator(f"#part0-jobs th[aria-sort={order}]").inner_text() == "validation"
        )
        column = reader.column("part0-jobs", "validation")
        assert (
            column[-2:] == ["", ""] and "" not in column[:-2]
        )  # failed and waiting: below, whichever way


def test_hovering_shows_numbers(reader: Reader) -> None:
    page = reader.page
    # The mean of fraction 0.5, the third in the layer of means.
    mean = page.locator("#part0-score .mark-symbol.role-mark").nth(1).locator("path").nth(2)
    mean.hover(force=True)
    tooltip = page.locator("#vg-tooltip-element.visible")
    tooltip.wait_for()
    text = re.sub(r"\s+", " ", tooltip.inner_text())
    for words in ("pct_unfreeze 0.5", "mean accuracy 0.8900", "trainings 3"):
        assert words in text
    curves = page.locator("#part0-curves svg.marks")
    curves.scroll_into_view_if_needed()
    box = curves.bounding_box()
    assert box
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
    page.wait_for_function(
        "document.querySelector('#vg-tooltip-element').innerText.includes('epoch')"
    )
    assert "mean accuracy" in re.sub(r"\s+", " ", tooltip.inner_text())


def test_jobs_link_to_their_runs_and_show_their_state(reader: Reader) -> None:
    links = reader.page.locator("#part0-jobs a").evaluate_all(
        "links => links.map(link => link.getAttribute('href'))"
    )
    assert len(links) == 12 and "https://wandb.example/runs/0.5-2" in links
    assert reader.column("part0-jobs", "state").count("failed") == 1
    text = reader.page.inner_text("body")
    assert (
        "RuntimeError: broke" in text and "waiting: 1 of 15 jobs." in text and "tvf resume " in text
    )
    assert "</script><script>x()</script>" in text  # as text


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_are_readable_and_print_is_white(
    browser: Browser, report: Path, scheme: Any
) -> None:
    page = browser.new_page(color_scheme=scheme)
    reader = Reader(page, report)

    def colour(selector: str, name: str) -> float:
        value = page.evaluate(
            "([s, n]) => getComputedStyle(document.querySelector(s))[n]", [selector, name]
        )
        return sum(map(float, re.findall(r"[\d.]+", value)[:3])) / 3

    dark = scheme == "dark"
    assert (colour("body", "backgroundColor") < 50) == dark
    for selector, name in (
        ("body", "color"),
        ("#part0-score .role-axis-title text", "fill"),
        ("td", "color"),
    ):
        assert (colour(selector, name) > 180) == dark and (colour(selector, name) < 80) != dark
    page.emulate_media(media="print", color_scheme=scheme)
    assert (
        colour("body", "backgroundColor") == 255
        and colour("#part0-score .role-axis-title text", "fill") < 80
    )
    assert reader.complaints == []
    page.close()


def test_a_phone_needs_no_horizontal_scrolling(browser: Browser, report: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    reader = Reader(page, report)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    for what in ("svg.marks", ".role-legend text", ".role-axis text"):
        ends = page.locator(what).evaluate_all(
            "all => all.map(item => item.getBoundingClientRect().right)"
        )
        assert ends and max(ends) <= 390, what
    assert reader.complaints == []
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_how_much_data_is_drawn_and_readable_on_a_phone(
    browser: Browser, tmp_path: Path, scheme: Any
) -> None:
    laws = {
        0.0: lambda images: 0.83 - images**-0.5,
        1.0: lambda images: 0.95 - 6 * images**-0.6,
    }
    add_curves(tmp_path, laws)
    (path,) = write_files(render_report([tmp_path], read_sweep(tmp_path), "html"), tmp_path)
    page = browser.new_page(viewport={"width": 390, "height": 844}, color_scheme=scheme)
    reader = Reader(page, path)
    assert reader.complaints == []
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    labels, legend, marks = (
        page.locator(f"#part0-data {what}").evaluate_all(
            "all => all.map(item => [item.textContent, item.getAttribute('fill'),"
            " item.getBoundingClientRect().left, item.getBoundingClientRect().right])"
        )
        for what in (".role-axis-label text", ".role-legend text", ".mark-symbol path")
    )
    assert max(right for *_, right in labels + legend) <= 390
    sizes = [(left, right) for text, _, left, right in labels if "." not in text]
    assert {text for text, *_ in labels} >= {"100", "200", "400", "800", "1,600", "3,200"}
    assert all(one[1] < other[0] for one, other in pairwise(sizes))
    assert {COLOURS[0.0], COLOURS[1.0]} <= {fill for _, fill, *_ in marks}
    page.close()


@pytest.fixture(scope="module")
def pictured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two seeds that are wrong about 40 images, a long name and one that is gone among them."""
    folder = tmp_path_factory.mktemp("pictured")
    root = write_images(folder / "data")
    images = sorted(root.glob("train/*/*.png"))
    images[0] = images[0].rename(images[0].with_name("x" * 150 + ".png"))
    names = [str(path.relative_to(root)) for path in images]
    digests = {name: digest((root / name).read_bytes()) for name in names}
    for seed in (1, 2):
        job = add_folder_job(folder / "sweep", root, 0.5, seed, image_size=64)
        rows = {name: (1, [0.95 - place / 100, 0.05]) for place, name in enumerate(names)}
        test = dict(list(rows.items())[40:])
        add_predictions(job, dict(list(rows.items())[:40]), test, digests)
    images[1].unlink()
    rendered = render_report([folder / "sweep"], read_sweep(folder / "sweep"), "html")
    (path,) = write_files(rendered, folder / "sweep")
    return path


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1200])
def test_pictures_are_shown_enlarged_and_fit_the_page(
    browser: Browser, pictured: Path, width: int, scheme: Any
) -> None:
    page = browser.new_page(viewport={"width": width, "height": 844}, color_scheme=scheme)
    reader = Reader(page, pictured)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    pictures = page.locator("section > .pictures img")
    assert pictures.count() == 24 + 24 + 24 - 2  # the lost one is in two lists
    assert set(pictures.evaluate_all("all => all.map(image => image.naturalWidth)")) == {64}
    text = page.locator(".pictures figcaption").first.inner_text()
    assert "2 of 2 agree" in text and "95.0" in text
    boxes = page.locator("section > .pictures figure").evaluate_all(
        "all => all.map(figure => [figure.scrollWidth, figure.clientWidth])"
    )
    assert all(scroll <= client for scroll, client in boxes)
    enlarged = page.locator("#enlarged")
    assert not enlarged.is_visible()
    for index in (0, 1, 2, 23):  # on both edges of the page
        pictures.nth(index).hover()
        box = enlarged.bounding_box()
        assert box and box["width"] == 288 and box["x"] >= 0 and box["x"] + 288 <= width
        assert box["y"] >= 0 and box["y"] + box["height"] <= 844
        assert enlarged.get_attribute("src") == pictures.nth(index).get_attribute("src")
    page.mouse.move(0, 0)
    assert not enlarged.is_visible()
    hidden = page.locator("details.test-images img").first
    assert not hidden.is_visible()
    page.locator("details.test-images summary").click()
    assert hidden.is_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == width
    assert reader.complaints == []
    page.close()


def test_confusion_and_calibration_are_drawn_on_a_phone(browser: Browser, pictured: Path) -> None:
    page = browser.new_page(viewport={"width": 390, "height": 844})
    Reader(page, pictured)
    assert page.locator("#part0-confusion .mark-rect.role-mark path").count() == 4
    counts = page.locator("#part0-confusion .mark-text.role-mark text").all_text_contents()
    assert counts == ["400", "140", "80", "166"]
    marks = page.locator("#part0-reliability .mark-symbol.role-mark path")
    assert marks.count() == 3 * 15
    legend = page.locator("#part0-reliability .role-legend text")
    assert legend.all_text_contents() == [
        "validation, before scaling",
        "validation, after scaling",
        "test, after scaling",
    ]
    rows = page.locator("#part0-calibration tbody tr").count()
    table = page.locator("#part0-calibration").bounding_box()
    assert rows == 4 and table and table["x"] + table["width"] <= 390
    page.close()
