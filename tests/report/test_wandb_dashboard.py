"""The workspace and report as W&B's service receives them, and the errors if it rejects them."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb

from helpers import ROOT, Outcome
from helpers.sweeps import add_job
from tvf import cli
from tvf.errors import InputError
from tvf.records import tracking
from tvf.report import wandb_dashboard as dashboard
from tvf.report.wandb_dashboard import build_report, build_workspace, keys, publish_dashboard

GROUP = "it's lr=0.1 <ü>"  # what a folder may be called, and a filter's language gets wrong
RECOMMENDATION, TABLE = "**0.25** is as good as 0.5", "| a | b |\n|---|---|\n| 1 | 2 |"


class Service:
    """A stand-in for W&B that keeps what is sent. `project` None means that it is not found."""

    app_url = "https://wandb.example/"

    def __init__(self) -> None:
        self.sent: dict[str, dict[str, Any]] = {}
        self.project: dict[str, Any] | None = {"id": "1", "internalId": "UHJvamVjdA=="}
        self.entity: str | None = "somebody"

    def execute_graphql(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        if "upsertView" not in query:
            return {"project": self.project}
        self.sent["workspace" if variables["type"] == "project-view" else "report"] = variables
        view = {key: variables[key] for key in ("name", "displayName", "description", "spec")}
        project = {"name": variables["projectName"], "entityName": variables["entityName"]}
        return {
            "upsertView": {
                "view": {"id": "VmlldzoxMjM=", "project": project, **view},
                "inserted": True,
            }
        }


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    service = Service()
    api = SimpleNamespace(
        _service_api=service,
        default_entity=service.entity,
        projects=lambda entity: [SimpleNamespace(name="mine")],
    )
    monkeypatch.setattr(wandb, "Api", lambda: api)
    monkeypatch.setattr(wandb, "termlog", lambda text: None)
    return service


def specs(
    service: Service, metric: str = "val_acc", auroc: bool = False, **more: Any
) -> dict[str, dict[str, Any]]:
    """The JSON that is saved."""
    publish_dashboard("mine", GROUP, metric, RECOMMENDATION, TABLE, auroc=auroc, **more)
    return {kind: json.loads(sent["spec"]) for kind, sent in service.sent.items()}


def find(node: Any, key: str) -> list[Any]:
    """Every value of `key`, at any depth."""
    if isinstance(node, list):
        return [value for item in node for value in find(item, key)]
    if not isinstance(node, dict):
        return []
    return [
        *([node[key]] if key in node else []),
        *(value for item in node.values() for value in find(item, key)),
    ]


def panels(spec: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    """The settings of the panels of one kind."""
    lists = [found for found in find(spec, "panels") if isinstance(found, list)]
    return [panel["config"] for found in lists for panel in found if panel["viewType"] == kind]


def named(spec: dict[str, Any]) -> tuple[set[str], set[str], set[str]]:
    """The history, summary and config keys in a spec, of all panels and groupings."""
    lines, bars = panels(spec, "Run History Line Plot"), panels(spec, "Bar Chart")
    history = {key for line in lines for key in (line["xAxis"], *line["metrics"])}
    scatters = panels(spec, "Scatter Plot")
    axes = [
        *find(spec, "accessor"),
        *(scatter[axis] for scatter in scatters for axis in ("xAxis", "yAxis")),
    ]
    axes += [f"summary:{key}" for bar in bars for key in bar["metrics"]]
    axes += [f"config:{key}" for key in find(spec, "groupBy")]
    axes += [f"{key['section']}:{key['name']}" for keys in find(spec, "grouping") for key in keys]
    summary = {axis.removeprefix("summary:") for axis in axes if axis.startswith("summary:")}
    config = {axis.removeprefix("config:") for axis in axes if axis.startswith("config:")}
    assert len(axes) > 10 and all(axis.startswith(("summary:", "config:")) for axis in axes)
    assert all(key.endswith(".value") for key in config)  # as the service keeps a config
    return history, summary, {key.removesuffix(".value") for key in config}


@pytest.mark.parametrize(
    ("metric", "auroc"), [("val_acc", False), ("val_acc", True), ("val_auroc", False)]
)
def test_what_is_saved_uses_all_keys_and_no_others(
    service: Service, metric: str, auroc: bool
) -> None:
    known = keys(metric, auroc)
    assert ("val_auroc" in known.history) == (auroc or metric == "val_auroc")
    for spec in specs(service, metric, auroc).values():
        assert named(spec) == ({*known.history}, {*known.summary}, {*known.config})


@pytest.mark.slow
def test_real_runs_have_all_keys(
    shell: Callable[..., Outcome], monkeypatch: pytest.MonkeyPatch
) -> None:
    got: dict[str, set[str]] = {"history": set(), "summary": set(), "config": set()}

    def note(kind: str, values: dict[str, Any]) -> None:
        got[kind] |= {key for key, value in values.items() if value is not None}

    run = tracking._NoRun
    start = tracking.NoTracker.start

    def started(
        self: Any, folder: Any, name: Any, group: Any, config: dict[str, Any], *more: Any
    ) -> Any:
        note("config", config)
        return start(self, folder, name, group, config, *more)

    monkeypatch.setattr(tracking.NoTracker, "start", started)
    monkeypatch.setattr(run, "log", lambda self, metrics, step: note("history", metrics))
    monkeypatch.setattr(run, "set_summary", lambda self, values: note("summary", values))
    outcome = shell(
        "epochs=1", "data.limit=32", "data.batch_size=4", "data.image_size=32", "tracker=none"
    )
    assert outcome.code == 0, outcome.err
    known = keys("val_acc", auroc=True)  # the default data has two classes
    assert {*known.history} <= got["history"]
    assert {*known.summary} <= got["summary"]
    assert {*known.config} <= got["config"]


def test_runs_are_those_of_the_group_without_the_summary_run(service: Service) -> None:
    found = [
        filters
        for spec in specs(service).values()
        for filters in find(spec, "filters")
        if "filterFormat" in filters
    ]
    assert len(found) == 6  # of the workspace, and of every panel grid
    for filters in found:
        group, name = filters["filters"]
        assert (group["key"], group["op"], group["value"]) == (
            {"section": "run", "name": "group"},
            "=",
            GROUP,
        )
        assert (name["key"], name["op"]) == ({"section": "run", "name": "displayName"}, "!=")
        assert (name["value"], name["connector"]) == (tracking.SUMMARY, "AND")
        assert not group["disabled"] and not name["disabled"]


def test_curves_are_means_and_deviations_over_seeds_by_epoch(service: Service) -> None:
    for spec in specs(service).values():
        lines = panels(spec, "Run History Line Plot")
        assert len(lines) == len(keys("val_acc").history) - 1
        for panel in [*lines, *panels(spec, "Bar Chart")]:
            assert (panel["groupBy"], panel["groupAgg"], panel["groupArea"]) == (
                "trained.value",
                "mean",
                "stddev",
            )
            assert panel["aggregate"]
        assert {line["xAxis"] for line in lines} == {"epoch"}


def test_the_workspace_groups_its_runs_by_fraction(service: Service) -> None:
    assert find(specs(service)["workspace"], "grouping") == [
        [{"section": "config", "name": "trained.value"}]
    ]


def test_a_report_groups_runs_except_where_it_shows_single_runs(service: Service) -> None:
    blocks = [
        block
        for block in specs(service)["report"]["blocks"]
        if block["type"] in ("heading", "panel-grid")
    ]
    names = [block["children"][0]["text"] for block in blocks[::2]]
    grouped = [bool(find(block, "grouping")[0]) for block in blocks[1::2]]
    assert dict(zip(names, grouped, strict=True)) == {
        "Score": True,
        "Score and cost": False,
        "Validation": True,
        "Training": True,
        "Jobs": False,
    }


def test_the_comparer_shows_differences_only(service: Service) -> None:
    assert [panels(spec, "Run Comparer") for spec in specs(service).values()] == [
        [{"diffOnly": True}]
    ] * 2


def test_the_recommendation_comes_first(service: Service) -> None:
    saved = specs(service)
    blocks = [block for block in saved["report"]["blocks"] if block["type"] != "paragraph"]
    assert [block.get("content") for block in blocks[:2]] == [RECOMMENDATION, TABLE]
    first, *_ = saved["workspace"]["section"]["panelBankConfig"]["sections"]
    assert [panel["config"] for panel in first["panels"]] == [{"value": RECOMMENDATION}]


def test_panels_of_a_report_do_not_overlap(service: Service) -> None:
    for grid in find(specs(service)["report"], "panelBankSectionConfig"):
        places = [panel["layout"] for panel in grid["panels"]]
        cells = [
            (x, y)
            for place in places
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        ]
        assert len(cells) == len({*cells})
        assert max(x for x, _ in cells) < 24


@pytest.mark.parametrize(("entity", "owner"), [(None, "somebody"), ("team", "team")])
def test_both_are_saved_and_their_urls_returned(
    service: Service, entity: str | None, owner: str
) -> None:
    workspace, report = publish_dashboard(
        "mine", "g", "val_acc", RECOMMENDATION, TABLE, entity=entity
    )
    view = service.sent["workspace"]["name"].removeprefix("nw-").removesuffix("-v")
    assert workspace == f"https://wandb.example/{owner}/mine?nw={view}"
    assert report == f"https://wandb.example/{owner}/mine/reports/tvf-g--VmlldzoxMjM="
    assert {sent["entityName"] for sent in service.sent.values()} == {owner}


@pytest.mark.parametrize("group", [GROUP, "a" * 255, "2026-01-01_10-00-00-000000"])
def test_any_folder_name_makes_a_title(service: Service, group: str) -> None:
    publish_dashboard("mine", group, "val_acc", RECOMMENDATION, TABLE)
    titles = {sent["displayName"] for sent in service.sent.values()}
    assert len(titles) == 1
    assert re.fullmatch(r"tvf [\w., -]{1,124}", titles.pop())


def raising(error: Exception) -> Callable[..., Any]:
    def fail(*given: Any, **named: Any) -> Any:
        raise error

    return fail


def test_a_missing_project_is_named_in_the_error(service: Service) -> None:
    service.project = None
    with pytest.raises(
        InputError, match=r"project 'somebody/mine' not found.*tracker\.entity=.*wandb sync"
    ):
        specs(service)
    assert not service.sent


def test_a_login_without_a_default_entity_asks_for_one(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wandb.Api(), "default_entity", None)
    with pytest.raises(InputError, match="tracker.entity="):
        specs(service)


# wandb raises the first if the server does not know the operation, the second for an empty answer.
@pytest.mark.parametrize(
    "error", [RuntimeError('Unknown operation named "".\nmore'), TypeError("no 'upsertView'")]
)
def test_a_server_without_workspaces_is_an_error_with_a_remedy(
    service: Service, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    monkeypatch.setattr(service, "execute_graphql", raising(error))
    with pytest.raises(InputError, match="WANDB_BASE_URL") as raised:
        specs(service)
    assert str(error).splitlines()[0].rstrip(".") in str(raised.value)
    assert "more" not in str(raised.value).splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("environment", "remedy"),
    [
        ({}, "Log in with: wandb login."),
        ({"WANDB_API_KEY": "short"}, "Use another key with: wandb login --relogin."),
    ],
)
def test_a_missing_or_malformed_login_is_an_error_with_a_remedy(
    environment: dict[str, str], remedy: str
) -> None:
    code = (
        "from tvf.report import publish_dashboard; "
        "publish_dashboard('mine', 'g', 'val_acc', '', '')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert last.startswith("tvf.errors.InputError: ") and remedy in last, done.stderr


def test_without_the_package_the_error_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in (
        "wandb_workspaces",
        *(module for module in sys.modules if module.startswith("wandb_workspaces.")),
    ):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(InputError, match=r"pip install wandb-workspaces"):
        build_workspace("e", "mine", "g", "val_acc", "")
    with pytest.raises(InputError, match=r"pip install wandb-workspaces"):
        build_report("e", "mine", "g", "val_acc", "", "")


def test_the_module_can_be_imported_without_the_package() -> None:
    code = "import sys; sys.modules['wandb_workspaces'] = None; import tvf.report.wandb_dashboard"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0
    assert "wandb_workspaces" not in vars(dashboard)


def call(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> None:
    monkeypatch.setattr(sys, "argv", ["tvf", "dashboard", *arguments])
    cli.main()


def test_the_command_saves_both_for_the_sweeps_group(
    service: Service,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for fraction in (0.0, 0.5):
        for seed in (1, 2):
            add_job(tmp_path, fraction, seed, changes={"project": "mine"}, wandb_run_id="x")
    for status in tmp_path.glob("*/status.json"):
        status.write_text(
            status.read_text().replace('"wandb_run_id": null', '"wandb_run_id": "abc"')
        )
    call(monkeypatch, str(tmp_path))
    assert [*service.sent] == ["report", "workspace"]
    for sent in service.sent.values():
        assert sent["projectName"] == "mine" and tmp_path.name in sent["spec"]
        assert "best so far is pct_unfreeze=0" in sent["spec"]
    assert "| 0.5 | 2 | 0.800" in service.sent["report"]["spec"]
    assert capsys.readouterr().out.count("https://") == 2


def test_a_sweep_without_runs_or_with_mixed_data_has_no_dashboard(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for limit in (None, 100):
        add_job(tmp_path, 0.5, 1, changes={"data.limit": limit})
    with pytest.raises(SystemExit, match="no job has a W&B run"):
        call(monkeypatch, str(tmp_path))
    for status in tmp_path.glob("*/status.json"):
        status.write_text(
            status.read_text().replace('"wandb_run_id": null', '"wandb_run_id": "abc"')
        )
    with pytest.raises(
        SystemExit,
        match="not comparable, so they cannot share a dashboard .data.limit=100; data.limit=None",
    ):
        call(monkeypatch, str(tmp_path))
    assert service.sent == {}
