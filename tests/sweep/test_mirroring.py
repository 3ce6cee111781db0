"""A sweep and its mirror: which commands may have one, and whose manifest counts."""

import re
from pathlib import Path
from typing import Any

import pytest
from omegaconf import OmegaConf

from tvf.cli import commands
from tvf.cli.chosen import overrides_of
from tvf.errors import InputError
from tvf.sweep import mirroring
from tvf.sweep.mirroring import open_mirror, refuse_mirror, refuse_unmirrored, same_mirror

URL = "s3://bucket/demo"
BASIC = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"


def _config(launcher: str) -> Any:
    return OmegaConf.create({"mirror": URL, "hydra": {"launcher": {"_target_": launcher}}})


def test_what_cannot_have_a_mirror_is_refused(tmp_path: Path) -> None:
    jobs = {"a": {"mirror": URL}, "b": {"mirror": URL}}
    with pytest.raises(InputError, match="must be null with a cluster's launcher"):
        open_mirror(_config("hydra_plugins.tvf_launchers.RayLauncher"), tmp_path, jobs)
    jobs["b"] = {"mirror": URL + "2"}
    with pytest.raises(InputError, match="one value in a sweep, not 2"):
        open_mirror(_config("local"), tmp_path, jobs)
    with pytest.raises(InputError, match="must be null unless hydra/sweeper=grid"):
        refuse_mirror(_config("local"))
    with pytest.raises(InputError, match="must be null for a single job.*tvf train -m"):
        refuse_unmirrored({"mirror": URL}, None)
    refuse_unmirrored({"mirror": None}, None)
    refuse_unmirrored({"mirror": URL}, tmp_path)


def test_a_mirror_is_not_taken_for_a_sweep_nor_kept_in_one(tmp_path: Path) -> None:
    mirror = tmp_path / "mirror"
    (mirror / "job" / "claims").mkdir(parents=True)
    (mirror / "job" / "claims" / "000001.json").write_text("{}")
    (mirror / "sweep.json").write_text("{}")
    for command in (commands.status, lambda place: commands.resume(place, [])):
        with pytest.raises(SystemExit) as error:
            command(mirror)
        assert "is a mirror" in str(error.value) and mirror.as_uri() in str(error.value)
    with pytest.raises(SystemExit, match="`tvf resume s3://bucket/demo` fetches"):
        commands.status(Path(URL))
    with pytest.raises(SystemExit, match="`tvf resume file:///tmp/demo` fetches"):
        commands.status(Path("file:///tmp/demo"))
    for sweep in (mirror, mirror / "below", tmp_path):
        with pytest.raises(InputError, match="must not be in each other"):
            open_mirror(_config(BASIC), sweep, {"a": {"mirror": mirror.as_uri()}})
    assert len([*mirror.rglob("*")]) == 4, "nothing was written"


def test_a_command_keeps_its_arguments_with_another_mirror() -> None:
    arguments = ["-m", "seed=1,2", "mirror=s3://old/place", "epochs=3"]
    assert same_mirror(arguments, None) == ["-m", "seed=1,2", "epochs=3"]
    assert same_mirror(arguments, URL) == ["-m", "seed=1,2", "epochs=3", f"mirror={URL}"]
    assert same_mirror([], "file:///a b") == ["mirror='file:///a b'"]


class Stored:
    """A mirror of which only the manifest is asked for."""

    url = URL

    def __init__(self, manifest: dict[str, Any]) -> None:
        self.manifest = manifest

    def ask(self, do: str, **arguments: Any) -> Any:
        if do == "read_manifest":
            return self.manifest
        if not arguments["first"]:
            self.manifest = arguments["content"]
        return not arguments["first"]


def test_machines_agree_on_one_manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    theirs = {
        "group": "demo",
        "summary": {"id": "1234", "mode": "online"},
        "commands": [{"folder": "/theirs", "arguments": ["-m", "seed=1,2", "mirror=s3://b/d"]}],
        "jobs": {"1": {"seed": 1}, "2": {"seed": 2}},
    }
    mirror: Any = Stored(theirs)
    given = ["-m", "mirror=s3://b/d/", "seed=1,2"]
    mirroring._adopt_manifest(mirror, tmp_path / "sweep", given)
    ours = mirroring.read_json(tmp_path / "sweep" / "sweep.json")
    assert ours["group"] == "demo" and ours["summary"] == {"id": "1234"}
    assert ours["jobs"] == theirs["jobs"]
    assert ours["commands"] == [{"folder": str(tmp_path), "arguments": given}]

    ours["commands"].append({"folder": str(tmp_path), "arguments": ["-m", "seed=3"]})
    ours["jobs"]["3"] = {"seed": 3}
    mirroring.write_json(tmp_path / "sweep" / "sweep.json", ours)
    mirroring._send_manifest(mirror, tmp_path / "sweep")
    assert [*mirror.manifest["jobs"]] == ["1", "2", "3"]
    assert [c["arguments"] for c in mirror.manifest["commands"]] == [given, ["-m", "seed=3"]]

    with pytest.raises(InputError, match=re.escape(f"mirror={URL} holds another sweep: tvf train")):
        mirroring._adopt_manifest(mirror, tmp_path / "other", ["-m", "seed=4"])


def test_a_confirmation_does_not_use_the_mirror_of_its_sweep() -> None:
    job = {"config": {"mirror": URL, "seed": 1}, "overrides": ["epochs=2", f"mirror={URL}"]}
    group: Any = type("Group", (), {"done": [job]})
    comparison: Any = type("Compared", (), {"following": ()})
    assert overrides_of(group, comparison) == {"epochs": "epochs=2", "mirror": "mirror=null"}
