"""A sweep in W&B's app: a workspace, which is a saved view of its runs, and a report.

Both show the runs of the sweep's group by what they train (0.5, 0.5 with LoRA), as mean and
standard deviation over seeds and folds.
"""

import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from tvf.errors import InputError
from tvf.records import SUMMARY

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2.interface import Report
    from wandb_workspaces.workspaces import Workspace


EPOCH, FRACTION, SECONDS = "epoch", "pct_unfreeze", "train_seconds"
TRAINED = "trained"  # in a run's config: its fraction and method
# Sections of a report that show single runs instead of means over seeds.
SINGLE_RUN_SECTIONS = ("Score and cost", "Jobs")
FULL_WIDTH = 24  # of a panel grid, in columns


@dataclass(frozen=True)
class Keys:
    """The values that panels read from a run: in its history, summary and top-level config."""

    history: tuple[str, ...]
    summary: tuple[str, ...]
    config: tuple[str, ...]


def keys(metric: str, auroc: bool = False) -> Keys:
    """The keys to show if `metric`, by its name in runs (val_acc), selects the epoch.

    `auroc` says whether the runs have that score.
    """
    scores = ["loss", "acc", "macro_f1"]
    if auroc or metric == "val_auroc":
        scores.append("auroc")
    curves = [f"val_{score}" for score in scores] + ["train_loss", "train_acc"]
    test_metric = metric.replace("val_", "test_", 1)
    return Keys(
        history=(EPOCH, *curves),
        summary=(metric, test_metric, SECONDS, "trainable_params", "peak_memory_mb"),
        config=(FRACTION, TRAINED, "seed"),
    )


def build_workspace(
    entity: str, project: str, group: str, metric: str, recommendation: str, auroc: bool = False
) -> "Workspace":
    """Build the workspace of the sweep whose runs form `group`, without saving it.

    `recommendation` is Markdown. Raises InputError if wandb-workspaces is not installed.
    """
    wr, ws = _library()

    def section(name: str, panels: list[Any]) -> Any:
        columns = FULL_WIDTH // panels[0].layout.w
        layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
        return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)

    text = wr.MarkdownPanel(markdown=recommendation, layout=wr.Layout(w=FULL_WIDTH))
    sections = {"Recommendation": [text]} | _panels(wr, keys(metric, auroc))
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=[section(name, panels) for name, panels in sections.items()],
        runset_settings=ws.RunsetSettings(
            filters=_filter_jobs(group), groupby=[ws.Config(TRAINED)]
        ),
    )


def build_report(
    entity: str,
    project: str,
    group: str,
    metric: str,
    recommendation: str,
    table: str,
    auroc: bool = False,
) -> "Report":
    """Build the report of the sweep whose runs form `group`, without saving it.

    `recommendation` and `table` are Markdown. Raises InputError if wandb-workspaces is not
    installed.
    """
    wr, _ = _library()
    blocks = [wr.MarkdownBlock(text=recommendation), wr.MarkdownBlock(text=table)]
    for name, panels in _panels(wr, keys(metric, auroc)).items():
        runs = wr.Runset(
            entity=entity,
            project=project,
            name=group,
            filters=_filter_jobs(group),
            groupby=[] if name in SINGLE_RUN_SECTIONS else [f"config.{TRAINED}"],
        )
        blocks += [wr.H2(text=name), wr.PanelGrid(runsets=[runs], panels=panels)]
    return wr.Report(entity=entity, project=project, title=_title(group), blocks=blocks)


def publish_dashboard(
    project: str,
    group: str,
    metric: str,
    recommendation: str,
    table: str,
    entity: str | None = None,
    auroc: bool = False,
) -> tuple[str, str]:
    """Save a new workspace and a new report at W&B, and return their URLs.

    `entity` None means the login's default entity. Raises InputError if wandb-workspaces is not
    installed, there is no login, the project is not found, or the server does not respond or does
    not support workspaces and reports.
    """
    wr, _ = _library()
    with _explain_errors(project):
        entity = entity or wr.Report(project=project).entity
    if not entity:
        raise InputError("W&B has no default entity for this login: set tracker.entity=.")
    report = build_report(entity, project, group, metric, recommendation, table, auroc)
    workspace = build_workspace(entity, project, group, metric, recommendation, auroc)
    with _explain_errors(f"{entity}/{project}"):
        report.save()  # first, because only a report checks that the project exists
        workspace.save()
        return workspace.url, report.url


def _panels(wr: Any, known: Keys) -> dict[str, list[Any]]:
    """The panels of each section; all panels of a section have the same width."""
    metric, *others = known.summary
    score, fraction = wr.SummaryMetric(metric), wr.Config(FRACTION)
    over_seeds = {
        "groupby": wr.Config(TRAINED),
        "groupby_aggfunc": "mean",
        "groupby_rangefunc": "stddev",
    }
    curves = {
        key: wr.LinePlot(title=key, x=EPOCH, y=[key], **over_seeds)
        for key in known.history
        if key != EPOCH
    }
    axes = [*map(wr.Config, known.config), *map(wr.SummaryMetric, (*others, metric))]
    columns = [wr.ParallelCoordinatesPlotColumn(axis) for axis in axes]
    by_fraction = f"{metric} by {FRACTION}"
    by_seconds = f"{metric} by {SECONDS}"
    return {
        "Score": [
            wr.BarPlot(
                title=f"{metric} by what was trained",
                metrics=[metric],
                orientation="v",
                **over_seeds,
            )
        ],
        "Score and cost": [
            wr.ScatterPlot(title=by_fraction, x=fraction, y=score),
            wr.ScatterPlot(title=by_seconds, x=wr.SummaryMetric(SECONDS), y=score),
        ],
        "Validation": [curve for key, curve in curves.items() if key.startswith("val_")],
        "Training": [curve for key, curve in curves.items() if key.startswith("train_")],
        "Jobs": [
            wr.ParallelCoordinatesPlot(columns=columns, layout=wr.Layout(w=FULL_WIDTH, h=10)),
            wr.RunComparer(diff_only=True, layout=wr.Layout(w=FULL_WIDTH, h=10)),
        ],
    }


def _filter_jobs(group: str) -> str:
    """A filter for the group's jobs.

    wandb_workspaces rewrites = < > even inside quotes unless they are escaped.
    """
    value = re.sub(r"[^A-Za-z0-9_. -]", lambda found: f"\\U{ord(found[0]):08x}", group)
    # Excludes the summary run by name: jobs have no job type, and it is not specified whether the
    # service treats a missing value as unequal.
    return f"Metric('Group') == '{value}' and Metric('Name') != '{SUMMARY}'"


def _title(group: str) -> str:
    """The title of both, as wandb_workspaces allows: no emojis (= is one), 128 characters."""
    return re.sub(r"[^\w., -]", "-", f"tvf {group}")[:128]


def _library() -> tuple[Any, Any]:
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Pydantic V1 style", DeprecationWarning)
            import wandb_workspaces.reports.v2 as wr
            import wandb_workspaces.workspaces as ws
    except ImportError as error:
        raise InputError(
            "the package wandb-workspaces is missing: pip install wandb-workspaces."
        ) from error
    return wr, ws


@contextmanager
def _explain_errors(project: str) -> Iterator[None]:
    """Turn errors of wandb and wandb_workspaces, some bare Exceptions, into reason and remedy."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        remedy = _remedy(error, project)
        raise InputError(
            f"W&B did not save the workspace and report: {reason}. {remedy}"
        ) from error


def _remedy(error: Exception, project: str) -> str:
    kind = type(error).__name__
    if kind == "UsageError" or type(error) is Exception:
        return "Log in with: wandb login."
    if kind == "AuthenticationError":
        return "Use another key with: wandb login --relogin. WANDB_BASE_URL sets the server."
    if isinstance(error, ValueError):
        return (
            f"Check that {project} is correct (project=, tracker.entity=). "
            "Upload offline runs first with: wandb sync."
        )
    return "A self-hosted server (WANDB_BASE_URL) may not support them; tvf report needs no server."
