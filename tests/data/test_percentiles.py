"""A window at percentiles of the training images' values: found from them alone, and kept."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from helpers.folders import write_images
from tvf.config.identity import frozen_layers_config
from tvf.data import ImageFolder, ReadingRules, count_images, percentiles
from tvf.data.encoded import EncodedImage
from tvf.data.images import read_image
from tvf.data.percentiles import RANKS, find_window, parse_percentiles, without_copies
from tvf.data.sources.files import FileSource
from tvf.errors import InputError
from tvf.inference.reading_rules import read_rules
from tvf.records import recorded_data
from tvf.store import Store

RNG = np.random.default_rng(0)


def _save(path: Path, values: np.ndarray, **how: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **how)
    return path


def _window(path: Path, *percentiles: float) -> tuple[float, float]:
    return find_window([path], (percentiles[0], percentiles[1]), 100.0)


@pytest.fixture
def floats(tmp_path: Path) -> Path:
    """Two classes of floating-point images, each of which has values of its own."""
    for number in range(48):
        values = RNG.normal(number, 1, (40, 40)).astype(np.float32)
        _save(tmp_path / "data" / "train" / "ab"[number % 2] / f"{number}.tif", values)
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("grey.png", RNG.integers(3, 200, (50, 41), dtype=np.uint8)),
        ("colour.png", RNG.integers(3, 200, (50, 41, 3), dtype=np.uint8)),
        ("deep.png", RNG.integers(0, 4096, (50, 41)).astype(np.uint16)),
        ("float.tif", RNG.normal(0, 5, (50, 41)).astype(np.float32)),
        ("wide.tif", RNG.integers(-9999, 9999, (50, 41)).astype(np.int32)),
    ],
)
def test_the_values_are_those_that_a_window_is_applied_to(
    tmp_path: Path, name: str, values: np.ndarray
) -> None:
    path = _save(tmp_path / name, values)
    low, high = _window(path, 2, 98)
    expected = np.percentile(values, [2, 98])
    assert [low, high] == pytest.approx(expected, abs=0.02 * float(np.ptp(values)))
    shown = read_image(path, 32, rules=ReadingRules("squash", "nearest", window=(low, high)))
    assert 0 < (shown == 0).mean() < 0.06 and 0 < (shown == 255).mean() < 0.06


def test_transparency_is_no_value_and_cmyk_is_light(tmp_path: Path) -> None:
    values = np.full((32, 32, 4), 200, np.uint8)
    values[16:, :, :3], values[..., 3] = 100, 0
    assert _window(_save(tmp_path / "a.png", values), 10, 90) == (100, 200)
    inks = Image.fromarray(values[..., :3]).convert("CMYK")
    inks.save(tmp_path / "inks.tif")
    assert _window(tmp_path / "inks.tif", 10, 90) == (100, 200)


def test_images_count_the_same_whatever_their_size(tmp_path: Path) -> None:
    large = _save(tmp_path / "large.png", np.full((900, 900), 10, np.uint8))
    small = _save(tmp_path / "small.png", np.full((10, 10), 200, np.uint8))
    assert find_window([large, small], (45, 55), 100.0) == (10, 200)
    huge = _save(tmp_path / "huge.png", RNG.integers(0, 255, (1201, 1201, 3), dtype=np.uint8))
    assert _window(huge, 10, 90) == pytest.approx((25.4, 228.6), abs=2)


def test_the_window_is_of_the_training_images_of_each_fold(floats: Path, tmp_path: Path) -> None:
    windows, digests = [], []
    with_store = Store(tmp_path / "store", 10**9)
    for fold in (0, 1):
        options: dict[str, Any] = {"folds": 2, "fold": fold, "window": ["0%", "100%"]}
        source = ImageFolder(root=str(floats), image_size=32, **options)
        data, stored = source.load(), source.load(store=with_store)
        assert data.train.fingerprint == stored.train.fingerprint
        window = count_images(data)["window"]
        names = [data.train.pool.names[place] for place in data.train.places]
        values = [np.sort(np.asarray(Image.open(f"{floats}/{name}")), None) for name in names]
        half = round(1600 * 0.5 / RANKS)  # the ranks begin half a step from the ends
        low, high = (np.min if end < 0 else np.max for end in (-1, 1))
        assert window == pytest.approx(
            [low([v[half] for v in values]), high([v[-half - 1] for v in values])], abs=0.3
        )
        windows.append(tuple(window))
        digests.append(data.train.pool.fingerprint)
        by_values = ImageFolder(root=str(floats), image_size=32, **options | {"window": window})
        assert by_values.load().train.fingerprint == data.train.fingerprint
    assert windows[0] != windows[1] and digests[0] != digests[1]
    with_store.close()
    kept = [path.name for path in (tmp_path / "store" / "values").iterdir()]
    assert len(kept) == 1  # for both folds


def test_dropped_duplicates_have_no_say_in_the_window(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    for number in range(16):
        name = f"{number % 2}/{number}.tif"
        for part in ("train", "val", "test"):
            wide = 50 if part == "test" else 1  # copied into train below
            values = rng.normal(0, wide, (36, 36)).astype(np.float32)
            _save(tmp_path / part / name, values)
    options: dict[str, Any] = {"root": str(tmp_path), "image_size": 32, "window": ["0%", "100%"]}
    alone = ImageFolder(**options, duplicates="drop").load().train
    for copied in (tmp_path / "test").rglob("*.tif"):
        twin = tmp_path / "train" / copied.parent.name / f"copy{copied.name}"
        twin.write_bytes(copied.read_bytes())
    dropped = ImageFolder(**options, duplicates="drop").load().train
    assert len(dropped) == len(alone) == 16 and dropped.pool.window == alone.pool.window
    warned = ImageFolder(**options).load().train
    assert warned.pool.window and dropped.pool.window
    assert warned.pool.window[1] > 50 > dropped.pool.window[1]


def test_a_training_split_of_duplicates_alone_is_an_error(tmp_path: Path) -> None:
    for number in range(8):
        values = RNG.normal(0, 1, (36, 36)).astype(np.float32)
        for part in ("train", "val", "test"):
            _save(tmp_path / part / f"{number % 2}/{number}.tif", values)
    source = ImageFolder(root=str(tmp_path), image_size=32, window=["1%", "99%"], duplicates="drop")
    with pytest.raises(InputError, match="data.duplicates=drop would leave a split without"):
        source.load()
    places = {"train": np.array([0]), "val": np.array([1])}
    with pytest.raises(InputError, match="2 of 2 images cannot be read"):
        without_copies([tmp_path / "a", tmp_path / "b"], places)


def test_frozen_layers_are_shared_only_within_a_division() -> None:
    def shared(window: Any, **data: Any) -> dict[str, Any]:
        node = {"_target_": "tvf.data.ImageFolder", "window": window, **data}
        return frozen_layers_config({"data": node, "model": {"frozen_bn": "eval"}})

    for changed in ({"fold": 1}, {"train_limit": 9}, {"split_seed": 2}):
        assert shared([0, 9]) == shared([0, 9], **changed) or "fold" not in changed
        assert shared(["1%", "99%"], fold=0) != shared(["1%", "99%"], **{"fold": 0, **changed})
    assert shared(["1%", "99%"]) == shared(["1%", "99%"], batch_size=9)


def test_a_model_reads_with_the_window_that_its_job_has_found() -> None:
    config = {"data": {"_target_": "tvf.data.ImageFolder", "window": ["1%", "99%"]}}
    summary = {"images": {"window": [2.5, 9.0]}}
    assert read_rules(config, summary).window == (2.5, 9.0)
    assert recorded_data(config, summary)["window"] == [2.5, 9.0]
    with pytest.raises(InputError, match="does not say images.window"):
        read_rules(config, {})


@pytest.mark.parametrize(
    "window",
    [
        *(["1%", 99], [1, "99%"], ["1%"], ["1%", "2%", "3%"], ["99%", "1%"], ["1%", "1%"], "1%"),
        *(
            ["-1%", "99%"],
            ["0%", "101%"],
            ["a%", "9%"],
            ["%", "9%"],
            ["nan%", "9%"],
            ["1%", "inf%"],
        ),
        *(["1 %%", "9%"], ["1", "9"], ["low", "high"], "auto", ["1%", None]),
    ],
)
def test_what_are_no_percentiles_is_refused(tmp_path: Path, window: Any) -> None:
    write_images(tmp_path, each=2)
    with pytest.raises(InputError, match=r"data.window=.* must be \[low"):
        ImageFolder(root=str(tmp_path), image_size=32, window=window)


def test_percentiles_are_numbers_with_a_sign() -> None:
    assert parse_percentiles(["1%", " 99.5 %"]) == (1, 99.5)
    assert parse_percentiles([0, 4095]) is None and parse_percentiles(None) is None


def test_a_white_point_beside_percentiles_is_refused(tmp_path: Path) -> None:
    write_images(tmp_path, each=2)
    with pytest.raises(InputError, match="data.white_point=9 cannot be used with data.window"):
        ImageFolder(root=str(tmp_path), image_size=32, white_point=9, window=["1%", "99%"])


def test_images_that_give_no_window_are_named(tmp_path: Path) -> None:
    flat = _save(tmp_path / "flat.png", np.full((32, 32), 7, np.uint8))
    with pytest.raises(InputError, match="at 1% and 99% are both 7, so nothing could be told"):
        _window(flat, 1, 99)
    for value, message in ((np.inf, "and must be finite"), (np.nan, "no numbers .NaN.")):
        values = np.full((32, 32), value, np.float32)
        with pytest.raises(InputError, match=message):
            _window(_save(tmp_path / "x.tif", values), 1, 99)
    (tmp_path / "bad.png").write_bytes(b"x")
    with pytest.raises(InputError, match="bad.png cannot be read as an image"):
        find_window([flat, tmp_path / "bad.png"], (1, 99), 100.0)
    with pytest.raises(InputError, match="2 of 3 images cannot be read"):
        bad = EncodedImage(str(tmp_path / "row"), lambda: b"y", 0.0)
        find_window([flat, tmp_path / "bad.png", bad], (1, 99), 100.0)
    with pytest.raises(InputError, match="more than data.max_megapixels=0.001"):
        find_window([flat], (1, 99), 0.001)


def test_every_source_of_files_finds_its_window() -> None:
    for source in FileSource.__subclasses__():
        assert source.adapt is FileSource.adapt and source.load is FileSource.load


def test_of_very_many_images_evenly_spaced_ones_are_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(percentiles, "IMAGES", 5)
    monkeypatch.setattr(percentiles, "FEW", 2)
    files = [
        _save(tmp_path / f"{number}.tif", np.array([[number, number + 0.5]], np.float32))
        for number in range(21)
    ]
    read: list[Path] = []
    values_of = percentiles.values_of
    monkeypatch.setattr(
        percentiles, "values_of", lambda file, *how: read.append(file) or values_of(file, *how)
    )
    assert find_window(files, (0, 100), 1.0) == (0, 20.5)
    assert sorted(read) == sorted(files[::5])
    assert find_window(files, (0, 100), 1.0, train=np.arange(4, 12)) == (5, 10.5)
    # Hardly any of the evenly spaced images are in this split.
    assert find_window(files, (0, 100), 1.0, train=np.array([1, 2, 3])) == (1, 3.5)
