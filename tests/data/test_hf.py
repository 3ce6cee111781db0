"""Data sets of Hugging Face: read like folders of the same images, and what is wrong is named."""

import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as PillowImage

from helpers.folders import write_images
from tvf.data import HfDataset, ImageFolder, describe_pool, hf_dataset, hf_rows
from tvf.errors import InputError
from tvf.job import resources
from tvf.report import gallery

datasets = pytest.importorskip("datasets")
BOTH = datasets.ClassLabel(names=["cats", "dogs"])
LABELS = [0, 0, 1, 1, 0, 1]


@pytest.fixture(autouse=True)
def _quiet() -> None:
    datasets.disable_progress_bars()


def _png(shade: int) -> bytes:
    content = BytesIO()
    PillowImage.new("RGB", (40, 36), (shade, 255 - shade, 90)).save(content, "PNG")
    return content.getvalue()


def _dataset(
    labels: Sequence[Any] = LABELS, kind: Any = BOTH, images: Sequence[Any] = (), **more: Any
) -> Any:
    """Rows with these labels, and columns `more`, each its values and their type."""
    cells = [{"bytes": _png(30 * n), "path": f"{n}.png"} for n in range(len(labels))]
    columns = {"image": [*images] or cells, "label": [*labels]}
    kinds = {"image": datasets.Image(), "label": kind}
    for name, (values, feature) in more.items():
        columns[name], kinds[name] = [*values], feature
    return datasets.Dataset.from_dict(columns, features=datasets.Features(kinds))


def _open(folder: Path, found: Any, **options: Any) -> HfDataset:
    found = datasets.DatasetDict(found) if isinstance(found, Mapping) else found
    found.save_to_disk(folder / "saved")
    return HfDataset(path=str(folder / "saved"), image_size=32, **options)


def _parts(source: HfDataset) -> list[str]:
    parts = source.catalog().parts
    return [] if parts is None else parts.tolist()


def _of_folder(folder: Path) -> dict[str, Any]:
    """The images of a folder as a data set for each of its splits."""
    found = {}
    for split in sorted(folder.iterdir()):
        files = [file for label in BOTH.names for file in sorted((split / label).iterdir())]
        labels = [BOTH.str2int(file.parent.name) for file in files]
        cells = [{"bytes": file.read_bytes(), "path": None} for file in files]
        found[split.name] = _dataset(labels, images=cells)
    return found


def _write_unusual(folder: Path) -> None:
    """Images that the rules of reading change: turned, of 16 bits, transparent."""
    rng = np.random.default_rng(0)
    turned = PillowImage.Exif()
    turned[274] = 6
    colours = rng.integers(0, 255, (36, 50, 3), dtype=np.uint8)
    PillowImage.fromarray(colours).save(folder / "turned.jpg", exif=turned)
    deep = rng.integers(0, 65535, (36, 50), dtype=np.uint16)
    PillowImage.fromarray(deep).save(folder / "deep.png")
    PillowImage.fromarray(deep).save(folder / "deep.tif")
    PillowImage.fromarray(rng.integers(0, 255, (9, 50, 4), dtype=np.uint8)).save(
        folder / "rgba.png"
    )


@pytest.mark.parametrize("options", [{}, {"resize": "pad", "window": [10, 240]}])
def test_images_are_read_like_those_of_a_folder(tmp_path: Path, options: dict[str, Any]) -> None:
    root = write_images(tmp_path / "images", each=8)
    if not options:
        _write_unusual(root / "train" / "cats")
    folder = ImageFolder(root=str(root), image_size=32, **options).load()
    found = _open(tmp_path, _of_folder(root), **options).load()
    assert found.classes == folder.classes
    one, other = (
        dict(zip(data.train.pool.pixels.digests, data.train.pool.pixels.pixel_digests, strict=True))
        for data in (found, folder)
    )
    assert one == other and len(one) == (20 if not options else 16)


def test_splits_have_their_usual_names_and_missing_ones_are_held_out(tmp_path: Path) -> None:
    found = _open(tmp_path, {"train": _dataset(), "validation": _dataset([1, 0])}).catalog()
    assert found.parts is not None
    assert found.parts.tolist() == ["train"] * 6 + ["val"] * 2
    assert list(found.names) == [f"train/{n}.png" for n in range(6)] + [
        f"validation/{n}.png" for n in range(2)
    ]
    assert (found.classes, found.notes) == (("cats", "dogs"), ())
    alone = _open(tmp_path / "alone", _dataset(LABELS * 4))
    assert alone.catalog().parts is None
    data = alone.load()
    assert [len(split) for split in data.by_name.values()] == [15, 3, 6]
    three = {"training": _dataset(), "dev": _dataset([0, 1]), "extra": _dataset([0])}
    notes = _open(tmp_path / "three", three).catalog().notes
    assert {*notes} == {
        "training is read as the train split",
        "dev is read as the val split",
        "splits that are not read: extra",
    }
    only = _open(tmp_path / "only", {"test": _dataset()}).catalog()
    assert only.parts is None and only.notes == ("test, the only split, is divided",)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        ({"val": _dataset, "test": _dataset}, "no split to train on, such as train, but val, test"),
        ({"train": _dataset, "val": _dataset, "valid": _dataset}, "several splits for val"),
        (
            {"train": _dataset, "test": lambda: _dataset("abab", datasets.Value("string"))},
            "column label is ClassLabel, but split test has string there",
        ),
        (
            {"train": lambda: _dataset([0, 0]), "test": _dataset},
            r"classes without images to train on: dogs \(test\[2\]",
        ),
        (lambda: _dataset([0, 0]), r"has 1 classes with images \(cats\), but must have 2"),
        ({"train": _dataset, "test": lambda: _dataset().select([])}, "of its splits has no rows"),
        (lambda: _dataset([-1, None]), "has 0 classes with images, but must have 2"),
        (
            lambda: _dataset().remove_columns("image"),
            "no column of type Image, but label .ClassLabel",
        ),
        (lambda: _dataset().remove_columns("label"), "no column of type ClassLabel, or text"),
        (lambda: _dataset([0.5, 1.5], datasets.Value("float32")), "no column of type ClassLabel"),
        (
            lambda: _dataset(coarse_label=(LABELS, BOTH)).rename_column("label", "fine_label"),
            "several columns that may hold the label: fine_label, coarse_label",
        ),
        (
            lambda: _dataset(weight=([1, 1, -1, 1, float("nan"), 1], datasets.Value("float32"))),
            r"2 rows whose weight is no number of at least 0 \(row\[2\], row\[4\]\)",
        ),
        (lambda: _dataset(weight=([0] * 6, datasets.Value("int8"))), "all weights of images to"),
        (
            lambda: _dataset(group=(["a", None, "b", " ", "a", "a"], datasets.Value("string"))),
            r"2 rows without group \(row\[1\], row\[3\]\)",
        ),
        (
            lambda: _dataset(["e\u0301", "\u00e9"] * 3, datasets.Value("string")),
            "whose names look the same, in different Unicode forms",
        ),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, found: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        _open(tmp_path, found() if callable(found) else {k: v() for k, v in found.items()})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_column": "x"}, "data.image_column=x must be a column of .*: image, label"),
        ({"image_column": "label"}, "must be a column of images, but .* has ClassLabel there"),
        ({"label_column": "image"}, "must hold ClassLabel, text or whole numbers"),
        ({"label_column": 3}, "must be the name of a column, or auto. Quote a number"),
        ({"group_column": "x"}, "data.group_column=x must be a column"),
        ({"group_column": "label"}, "cannot be both the label and the group"),
        ({"revision": "main"}, "data.revision=main is for names on the hub"),
        ({"config_name": "x"}, "data.config_name=x is for names on the hub"),
        ({"config_name": 1}, "data.config_name=1 must be text or null"),
    ],
)
def test_options_that_do_not_fit_are_named(
    tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        _open(tmp_path, _dataset(), **options)


def test_what_is_no_saved_data_set_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "file.csv").touch()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "state.json").write_text("{")
    for path, message in {
        str(tmp_path / "empty"): "without dataset_dict.json or state.json.*data=image_folder",
        str(tmp_path / "file.csv"): "is a file: it must be a folder.*data=table",
        str(tmp_path / "none"): "is neither: it must be a folder",
        str(tmp_path / "broken"): "cannot be read as a data set",
        "../x": "is neither",
        "a/b/c": "is neither",
        ".": "is neither|without dataset_dict.json",
        "": "must be a folder, or a name",
        "a" * 5000: "is neither",
        "a\0b": "is neither",
    }.items():
        with pytest.raises(InputError, match=message):
            HfDataset(path=path, image_size=32)


def test_a_column_says_the_splits_of_a_data_set_without_its_own(tmp_path: Path) -> None:
    text = datasets.Value("string")
    given = ["train", "Training", "train", "train", "dev", "test"]
    expected = ["train"] * 4 + ["val", "test"]
    found = _dataset(subset=(given, text))
    for name, each in {"only": {"train": found}, "all": {"all": found}, "one": found}.items():
        source = _open(tmp_path / name, each)
        assert _parts(source) == expected
        assert {
            "each image's split is in column subset (data.split_column)",
            "split Training is read as train",
            "split dev is read as val",
        } <= {*source.catalog().notes}
    source = HfDataset(path=str(tmp_path / "one" / "saved"), image_size=32)
    assert [len(split) for split in source.load().by_name.values()] == [4, 1, 1]
    without = HfDataset(path=source.path, image_size=32, split_column=None).catalog()
    assert without.parts is None and without.notes == ()
    named = datasets.ClassLabel(names=["train", "validation", "test"])
    numbers = _dataset(split=([0, 0, 0, 0, 1, 2], named)).rename_column("label", "kind")
    source = _open(tmp_path / "numbers", numbers)
    assert _parts(source) == expected and source.catalog().notes == ()


def test_splits_of_a_column_that_cannot_be_meant_are_errors(tmp_path: Path) -> None:
    text = datasets.Value("string")
    found = _dataset(set=(["train", "a", None, "train", "b", "test"], text))
    message = r"3 rows whose split is none of .*row\[1\]: a, row\[2\]: empty, row\[4\]: b.*=null"
    with pytest.raises(InputError, match=message):
        _open(tmp_path / "wrong", found)
    both = {"train": found, "test": found}
    source = _open(tmp_path / "both", both)
    assert _parts(source) == ["train"] * 6 + ["test"] * 6
    assert source.catalog().notes == (
        "column set is not used, as the data set has splits of its own",
    )
    with pytest.raises(InputError, match="data.split_column=set cannot be used with"):
        _open(tmp_path / "named", both, split_column="set")
    assert _open(tmp_path / "null", both, split_column=None).catalog().notes == ()


def test_rows_are_listed_once_until_the_data_set_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    listed = []
    rows_of = hf_rows._rows_of
    monkeypatch.setattr(hf_rows, "_rows_of", lambda *how: listed.append(how[1]) or rows_of(*how))
    source = _open(tmp_path, _dataset())
    first = source.catalog()
    first.labels[:] = 0  # of this catalog alone
    again = HfDataset(path=source.path, image_size=32).catalog()
    assert listed == [""] and again.labels.tolist() == LABELS
    HfDataset(path=source.path, image_size=32, group_column=None)
    assert listed == ["", ""]
    shutil.rmtree(source.path)
    _dataset([1, *LABELS[1:]], weight=([1] * 6, datasets.Value("int8"))).save_to_disk(source.path)
    assert source.catalog().labels.tolist() == [1, *LABELS[1:]] and len(listed) == 3


def test_what_only_compares_images_asks_nothing_of_the_hub(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = datasets.DatasetDict({"train": _dataset(LABELS * 4)})
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: found)
    options: dict[str, Any] = {"path": f"owner/{tmp_path.name}", "image_size": 32}
    data = HfDataset(**options).load()
    before = describe_pool(data.train.pool)

    def fail(*_: Any, **__: Any) -> None:
        raise AssertionError("asked")

    monkeypatch.setattr(hf_dataset, "_open", fail)
    config = {"data": {"_target_": "tvf.data.HfDataset", "download": True, **options}}
    source = resources.open_offline(config)
    assert source.count_changes(before, data.classes, 0) == {}
    del config["data"]["download"]  # of a config by hand
    with pytest.raises(InputError, match="names on the hub are not loaded with data.download=f"):
        gallery._open_data(config["data"])


def test_a_hub_name_without_network_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any, **__: Any) -> None:
        raise ConnectionError("Couldn't reach 'owner/name' on the Hub (LocalEntryNotFoundError)")

    monkeypatch.setattr(datasets, "load_dataset", fail)
    message = "is no folder here, and cannot be loaded from the hub: Couldn't reach .*connect to"
    with pytest.raises(InputError, match=message):
        HfDataset(path="owner/name", image_size=32, revision="main")


def test_a_data_set_of_the_hub_is_what_the_library_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def load(*given: Any, **how: Any) -> Any:
        asked.append((*given, how))
        return datasets.DatasetDict({"train": _dataset(LABELS * 4)})

    monkeypatch.setattr(datasets, "load_dataset", load)
    source = HfDataset(path="owner/other", config_name="small", revision="v2", image_size=32)
    assert asked == [("owner/other", "small", {"revision": "v2"})]
    assert len(source.load().train) == 15


def test_labels_are_those_of_their_type(tmp_path: Path) -> None:
    integers = _open(tmp_path / "int", _dataset([10, 2, 10, 2, -1, -1], datasets.Value("int32")))
    assert integers.catalog().classes == ("-1", "2", "10")
    assert "label -1 is read as a class: it may mean a missing label" in integers.catalog().notes
    texts = _dataset(["b", " a", "b ", None, "", "a"], datasets.Value("string"))
    catalog = _open(tmp_path / "text", texts).catalog()
    assert (catalog.classes, catalog.labels.tolist()) == (("a", "b"), [1, 0, 1, 0])
    assert [(e.count, e.reason, e.example) for e in catalog.left_out] == [
        (2, "rows without a label", "row[3]")
    ]
    three = datasets.ClassLabel(names=["z", "unused", "a"])
    catalog = _open(tmp_path / "unused", _dataset([2, 0, 2, 0, -1, None], three)).catalog()
    assert (catalog.classes, catalog.labels.tolist()) == (("z", "a"), [1, 0, 1, 0])
    assert catalog.notes == ("classes without images are left out: unused",)
    hidden = {"train": _dataset(), "test": _dataset([-1, -1])}
    catalog = _open(tmp_path / "hidden", hidden).catalog()
    assert catalog.parts is not None and {*catalog.parts} == {"train"}
    assert catalog.notes == ("no row of test has a label, so it is not used",)


def test_classes_are_known_by_name_whatever_their_numbers(tmp_path: Path) -> None:
    other = datasets.ClassLabel(names=["dogs", "cats"])
    both = {"train": _dataset(), "test": _dataset([0, 1], other)}
    catalog = _open(tmp_path, both).catalog()
    assert catalog.labels.tolist() == [*LABELS, 1, 0]


def test_groups_and_weights_are_columns(tmp_path: Path) -> None:
    more = {
        "group": ([7, 7, 8, 8, 9, 9], datasets.Value("int64")),
        "weight": ([1, 2, 3, 4, 5, 0.5], datasets.Value("float64")),
    }
    catalog = _open(tmp_path, _dataset(**more)).catalog()
    assert catalog.groups is not None and catalog.groups.tolist() == [0, 0, 1, 1, 2, 2]
    assert catalog.weights is not None and catalog.weights.tolist() == [1, 2, 3, 4, 5, 0.5]
    assert any("weight in column weight" in note for note in catalog.notes)


def test_damaged_and_missing_images_are_named(tmp_path: Path) -> None:
    cells = [{"bytes": _png(n), "path": None} for n in range(24)]
    cells[3], cells[5] = {"bytes": b"x", "path": None}, {"bytes": b"", "path": "a"}
    source = _open(tmp_path, {"train": _dataset(LABELS * 4, images=cells)})
    with pytest.raises(InputError, match=r"2 of 24 images .* text \(train\[3\]\); .* \(train\[5\]"):
        source.load()
    images = [None, *cells[10:], *cells[7:10], *cells[6:]][:24]
    source = _open(tmp_path / "missing", {"train": _dataset(LABELS * 4, images=images)})
    with pytest.raises(InputError, match=r"train\[0\] cannot be read: it has no image"):
        source.check_images()


def test_changes_are_counted_only_where_the_data_set_is_younger(tmp_path: Path) -> None:
    source = _open(tmp_path, _dataset(LABELS * 4))
    data = source.load()
    before, classes = describe_pool(data.train.pool), data.classes
    assert source.count_changes(before, classes, time.time() + 9) == {}
    assert source.count_changes(before, classes, 0) == {}
    images = [{"bytes": _png(7 if n == 2 else 30 * n), "path": f"{n}.png"} for n in range(23)]
    changed = _dataset([1, *LABELS[1:], *LABELS * 3][:23], images=images)
    again = _open(tmp_path / "changed", changed)
    assert again.count_changes(before, classes, 0) == {
        "removed": 1,
        "replaced": 1,
        "relabelled": 1,
    }


def test_without_the_library_or_with_an_old_one_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _dataset().save_to_disk(tmp_path / "saved")
    monkeypatch.setattr(datasets, "__version__", "3.6.0")
    with pytest.raises(InputError, match="needs datasets 4 or later, but 3.6.0 is installed"):
        HfDataset(path=str(tmp_path / "saved"), image_size=32)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(InputError, match="needs datasets, which is not installed: pip install"):
        HfDataset(path=str(tmp_path / "saved"), image_size=32)
