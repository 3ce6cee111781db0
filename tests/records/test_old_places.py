"""Records of earlier versions hold relative places, whose meaning must not depend on who reads."""

import json
from pathlib import Path

import pytest

from helpers.sweeps import add_job
from tvf.config.identity import result_config
from tvf.records import is_done, read_config, read_jobs


def _job(sweep: Path, seed: int, root: str, cwd: str | None) -> Path:
    changes = {"data._target_": "tvf.data.ImageFolder", "data.root": root}
    folder = add_job(sweep, 0.5, seed, changes=changes)
    text = "runtime: 3" if cwd is None else f"hydra:\n  runtime:\n    cwd: {cwd}"
    (folder / ".hydra" / "hydra.yaml").write_text(text)
    return folder


def test_a_relative_place_is_relative_to_the_folder_of_its_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _job(tmp_path, 1, "images", "/there")
    new = read_config(_job(tmp_path, 1, "/there/images", "/there"))
    for place in (tmp_path, Path("/")):
        monkeypatch.chdir(place)
        assert result_config(read_config(old))["data.root"] == "/there/images"
        assert [row["config"]["data"]["root"] for row in read_jobs(tmp_path)] == [
            "/there/images",
            "/there/images",
        ]
        assert is_done(old, new)


@pytest.mark.parametrize("damage", ["", "hydra: [", "hydra: {runtime: {cwd: 3}}", "\xff"])
def test_without_a_record_of_the_folder_places_stay_as_they_are(
    tmp_path: Path, damage: str
) -> None:
    folder = _job(tmp_path, 1, "images", None)
    (folder / ".hydra" / "hydra.yaml").write_bytes(damage.encode("latin-1"))
    assert read_config(folder)["data"]["root"] == "images"
    (folder / "config.json").write_text(json.dumps({"data": 3, "store": []}))
    assert read_config(folder) == {"data": 3, "store": []}
