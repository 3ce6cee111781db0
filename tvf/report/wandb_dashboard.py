"""A sweep in W&B's app: a workspace, which is a saved view of its runs, and a report.

Both show the runs of the sweep's group, by fraction, as mean and standard deviation over seeds.
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
EACH_JOB = ("Score and cost", "Jobs")  # sections of a report that show runs, not groups of them


@dataclass(frozen=True)
class Keys:
    """What is read of a run: points of its history, values of its summary, values at the top of its config."""

    history: tuple[str, ...]
    summary: tuple[str, ...]
    config: tuple[str, ...]


def keys(metric: str, auroc: bool = False) -> Keys:
    """The names in use where `metric`, as runs call it (val_acc), selects; `auroc`: whether they have that score."""
    scores = ["loss", "acc", "macro_f1", *(["auroc"] if auroc or metric == "val_auroc" else [])]
    curves = [*(f"val_{score}" for score in scores), "train_loss", "train_acc"]
    tested = metric.replace("val_", "test_", 1)
    return Keys(
        (EPOCH, *curves),
        (metric, tested, SECONDS, "trainable_params", "peak_memory_mb"),
        (FRACTION, "seed"),
    )


def build_workspace(
    entity: str, project: str, group: str, metric: str, recommendation: str, auroc: bool = False
) -> "Workspace":
    """The workspace of the sweep whose runs form `group`; `recommendation` is Markdown. Nothing is sent.

    Raises InputError where wandb-workspaces is not installed.
    """
    wr, ws = _library()

    def section(name: str, panels: list[Any]) -> Any:
        columns = 24 // panels[0].layout.w
        layout = ws.SectionLayoutSettings(columns=columns, rows=-(-len(panels) // columns))
        return ws.Section(name=name, panels=panels, is_open=True, layout_settings=layout)

    sections = {
        "Recommendation": [wr.MarkdownPanel(markdown=recommendation, layout=wr.Layout(w=24))]
    }
    return ws.Workspace(
        entity=entity,
        project=project,
        name=_title(group),
        sections=[section(*each) for each in (sections | _panels(wr, keys(metric, auroc))).items()],
        runset_settings=ws.RunsetSettings(filters=_jobs_of(group), groupby=[ws.Config(FRACTION)]),
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
    """The report of the sweep whose runs form `group`; `recommendation` and `table` are Markdown. Nothing is sent.

    Raises InputError where wandb-workspaces is not installed.
    """
    wr, _ = _library()
    blocks = [wr.MarkdownBlock(text=recommendation), wr.MarkdownBlock(text=table)]
    for name, panels in _panels(wr, keys(metric, auroc)).items():
        by = [] if name in EACH_JOB else [f"config.{FRACTION}"]
        runs = wr.Runset(
            entity=entity, project=project, name=group, filters=_jobs_of(group), groupby=by
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
    """Save a new workspace and a new report at W&B; their addresses. `entity` None is the login's default one.

    Raises InputError where wandb-workspaces is not installed, nobody is logged in, the project is not found, or the
    server does not answer or takes neither.
    """
    wr, _ = _library()
    with _explained(project):
        entity = entity or wr.Report(project=project).entity
    if not entity:
        raise InputError("W&B has no default entity for this login: name one with tracker.entity=.")
    report = build_report(entity, project, group, metric, recommendation, table, auroc)
    workspace = build_workspace(entity, project, group, metric, recommendation, auroc)
    with _explained(f"{entity}/{project}"):
        report.save()  # first, for it alone looks whether the project is there
        workspace.save()
        return workspace.url, report.url


def _panels(wr: Any, known: Keys) -> dict[str, list[Any]]:
    """The panels of each section; those of a section are equally wide, 24 being the whole width."""
    metric, *others = known.summary
    score, fraction = wr.SummaryMetric(metric), wr.Config(FRACTION)
    over_seeds = {"groupby": fraction, "groupby_aggfunc": "mean", "groupby_rangefunc": "stddev"}
    curves = {
        key: wr.LinePlot(title=key, x=EPOCH, y=[key], **over_seeds)
        for key in known.history
        if key != EPOCH
    }
    axes = [*map(wr.Config, known.config), *map(wr.SummaryMetric, (*others, metric))]
    columns = [wr.ParallelCoordinatesPlotColumn(axis) for axis in axes]
    return {
        "Score": [
            wr.BarPlot(
                title=f"{metric} by {FRACTION}", metrics=[metric], orientation="v", **over_seeds
            )
        ],
        "Score and cost": [
            wr.ScatterPlot(title=f"{metric} by {FRACTION}", x=fraction, y=score),
            wr.ScatterPlot(title=f"{metric} by {SECONDS}", x=wr.SummaryMetric(SECONDS), y=score),
        ],
        "Validation": [curve for key, curve in curves.items() if key.startswith("val_")],
        "Training": [curve for key, curve in curves.items() if key.startswith("train_")],
        "Jobs": [
            wr.ParallelCoordinatesPlot(columns=columns, layout=wr.Layout(w=24, h=10)),
            wr.RunComparer(diff_only=True, layout=wr.Layout(w=24, h=10)),
        ],
    }


def _jobs_of(group: str) -> str:
    """The filter of the group's jobs. wandb_workspaces changes = < > within quotes too, unless they are escaped."""
    value = re.sub(r"[^A-Za-z0-9_. -]", lambda found: f"\\U{ord(found[0]):08x}", group)
    # The summary by its name: jobs have no job type, and it is the service's to say whether none is unequal to one.
    return f"Metric('Group') == '{value}' and Metric('Name') != '{SUMMARY}'"


def _title(group: str) -> str:
    """What both are called: wandb_workspaces takes = and its like for emojis, and 128 characters at most."""
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
def _explained(project: str) -> Iterator[None]:
    """Turn what wandb and wandb_workspaces raise, among it bare Exceptions, into a reason and a remedy."""
    try:
        yield
    except Exception as error:
        reason = (str(error).strip() or repr(error)).splitlines()[0].rstrip(".")
        kind = type(error).__name__
        if kind == "UsageError" or type(error) is Exception:
            remedy = "Log in with: wandb login."
        elif kind == "AuthenticationError":
            remedy = "wandb login --relogin takes another key; WANDB_BASE_URL says which server is asked."
        elif isinstance(error, ValueError):
            remedy = f"Is {project} right (project=, tracker.entity=)? Runs that are offline: wandb sync them first."
        else:
            remedy = "A server that is not W&B's own (WANDB_BASE_URL) may have none; tvf report needs no server."
        raise InputError(f"W&B saves no workspace and no report: {reason}. {remedy}") from error
