"""Which modules may import which: the rules of tvf's rooms, checked in source and at run time."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from helpers import ROOT, imports
from helpers.imports import GROUND_ROOM, ROOMS, Import, room_of

MODULES = imports.read_modules()
IMPORTS = imports.read_imports(MODULES)
OF_TVF = [found for found in IMPORTS if found.of_tvf]
DOORS = {room: MODULES[f"tvf.{room}"] for room in ROOMS if room != GROUND_ROOM}


def _importers(*packages: str) -> set[str]:
    return {found.importer for found in IMPORTS if found.module.split(".")[0] in packages}


def test_every_folder_and_module_is_in_a_room() -> None:
    rooms = {room_of(module) for module in MODULES}
    assert rooms == {*ROOMS, "tvf", "__main__"}


def test_imports_go_downward() -> None:
    height = {room: number for number, room in enumerate(ROOMS)}
    upward = [
        str(found)
        for found in OF_TVF
        if (importer := room_of(found.importer)) in height
        and (imported := room_of(found.module)) in height
        and height[importer] < height[imported]
    ]
    assert upward == []


def _is_side_door(found: Import) -> bool:
    room = room_of(found.module)
    if room == room_of(found.importer):
        return False
    if room == "tvf":  # the package itself: its version, not a way to the rooms
        return found.name != "__version__"
    if room == GROUND_ROOM:
        return found.name is None
    return found.module != f"tvf.{room}" or found.name not in imports.exported_names(DOORS[room])


def test_imports_from_another_room_use_its_door() -> None:
    assert [str(found) for found in OF_TVF if _is_side_door(found)] == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert imports.find_circle(imports.imported_modules(MODULES, IMPORTS)) == []


@pytest.mark.parametrize("room", DOORS)
def test_a_door_lists_its_names_sorted_and_all_of_them(room: str) -> None:
    exported = imports.exported_names(DOORS[room])
    assert exported == sorted(exported)
    assert {*exported} == imports.bound_names(DOORS[room])


def test_the_import_reader_finds_violations(tmp_path: Path) -> None:
    package = tmp_path / "tvf"
    for path, source in {
        "__init__.py": "",
        "errors.py": "",
        "store/__init__.py": "from tvf.store.disk import a\n__all__ = ['b', 'a']\n",
        "store/disk.py": "def f():\n    from tvf.store import arrays\n",
        "store/arrays.py": (
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    import tvf.store.disk\n    from tvf.models import M\n"
        ),
        "models/__init__.py": "from tvf.store.disk import a\n__all__ = ['M']\n",
    }.items():
        (package / path).parent.mkdir(parents=True, exist_ok=True)
        (package / path).write_text(source)
    modules = imports.read_modules(package)
    found = imports.read_imports(modules)
    assert ("models", "store") in imports.room_edges(found)
    assert ("store", "models") in imports.room_edges(found)
    assert [str(one) for one in found if one.of_tvf and _is_side_door(one)] == [
        "tvf.models:1: from tvf.store.disk import a",
        "tvf.store.arrays:4: from tvf.models import M",
    ]
    graph = imports.imported_modules(modules, found)
    assert graph["tvf.store.disk"] == {"tvf.store.arrays"}
    assert imports.find_circle({k: graph[k] for k in ("tvf.store.disk", "tvf.store.arrays")}) == [
        *("tvf.store.arrays", "tvf.store.disk", "tvf.store.arrays"),
    ]
    assert imports.exported_names(modules["tvf.store"]) == ["b", "a"]
    assert imports.bound_names(modules["tvf.store"]) == {"a"}


def test_only_cli_config_and_sweep_import_hydra_and_omegaconf() -> None:
    elsewhere = {
        module
        for module in _importers("hydra", "omegaconf")
        if room_of(module) not in ("cli", "config", "sweep")
    }
    assert not elsewhere


def test_only_tracking_and_the_dashboard_import_wandb() -> None:
    assert _importers("wandb") == {"tvf.records.tracking"}
    assert _importers("wandb_workspaces") == {"tvf.report.wandb_dashboard"}


def test_only_data_sets_of_hugging_face_import_their_library() -> None:
    assert _importers("datasets") == {"tvf.data.hf_dataset"}


SHELLS = ("hydra", "omegaconf", "rich", "joblib", "wandb")
BELOW_CONFIG = [
    *(f"tvf.{module}" for module in imports.GROUND),
    *(f"tvf.{room}" for room in ROOMS[1 : ROOMS.index("config")]),
    "tvf",
]


@pytest.mark.slow
def test_rooms_below_config_load_without_the_shells_libraries_and_a_job_without_wandb(
    tmp_path: Path,
) -> None:
    """In one new process, which imports each of BELOW_CONFIG, then runs a job without a tracker."""
    code = f"""
import importlib, json, sys
loaded = {{}}
for module in {BELOW_CONFIG}:
    door = importlib.import_module(module)
    for name in getattr(door, "__all__", ()):
        getattr(door, name)
    loaded[module] = sorted({set(SHELLS)} & sys.modules.keys())
from tvf.cli import train
train()
print("LOADED", json.dumps([loaded, [*sys.modules]]))
"""
    quick = ("epochs=1", "data.limit=32", "data.batch_size=4", "data.image_size=32", "tracker=none")
    done = _python(code, *quick, cwd=tmp_path)
    of_rooms, of_job = json.loads(done.partition("LOADED ")[2])
    assert of_rooms == {module: [] for module in BELOW_CONFIG}
    assert "torch" in of_job
    assert not {"wandb", "datasets"} & {*of_job}


def test_the_picture_of_the_rooms_is_up_to_date() -> None:
    drawn = imports.draw_rooms(imports.room_edges(IMPORTS))
    assert drawn == (ROOT / "docs" / "rooms.svg").read_text(), (
        "PYTHONPATH=tests python -m helpers.imports > docs/rooms.svg"
    )


def _python(code: str, *arguments: str, cwd: Path) -> str:
    """What `code` prints in a new Python process, in which sys.argv are train.py's."""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.argv[0] = 'train.py'\n{code}", *arguments],
        check=True,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": str(ROOT), "TVF_STORE": str(cwd / "store")},
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_help_does_not_import_torch(tmp_path: Path) -> None:
    code = """
import atexit
atexit.register(lambda: print("LOADED", *sys.modules))
from tvf.cli import train
train()
"""
    loaded = {*_python(code, "--help", cwd=tmp_path).partition("LOADED ")[2].split()}
    assert "hydra" in loaded
    assert "torch" not in loaded


@pytest.mark.slow
def test_a_report_reads_images_without_what_training_imports(tmp_path: Path) -> None:
    loaded = {*_python("import tvf.data, sys; print(*sys.modules)", cwd=tmp_path).split()}
    assert "torch" in loaded
    assert not {"lightning_fabric", "torch._dynamo", "timm", "sklearn"} & loaded
