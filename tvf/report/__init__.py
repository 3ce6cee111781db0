"""The comparison of a sweep: statistics, a recommendation, tables, charts and pages.

Loaded name by name: the terminal's table must not wait for the libraries that charts need.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tvf.report.comparison import about_halving as about_halving
    from tvf.report.comparison import compare as compare
    from tvf.report.comparison import judged_by as judged_by
    from tvf.report.comparison import without_seeds as without_seeds
    from tvf.report.formats import FORMATS as FORMATS
    from tvf.report.formats import render_markdown as render_markdown
    from tvf.report.formats import render_report as render_report
    from tvf.report.formats import write_files as write_files
    from tvf.report.html import test_sentence as test_sentence
    from tvf.report.terminal import print_result as print_result
    from tvf.report.terminal import print_status as print_status
    from tvf.report.terminal import result_location as result_location
    from tvf.report.terminal import resume_hint as resume_hint
    from tvf.report.terminal import watch_status as watch_status
    from tvf.report.wandb_dashboard import publish_dashboard as publish_dashboard
    from tvf.report.wandb_summary import log_summary as log_summary

_MODULES = {
    "about_halving": "comparison",
    "compare": "comparison",
    "judged_by": "comparison",
    "without_seeds": "comparison",
    "FORMATS": "formats",
    "render_markdown": "formats",
    "render_report": "formats",
    "write_files": "formats",
    "test_sentence": "html",
    "print_result": "terminal",
    "print_status": "terminal",
    "result_location": "terminal",
    "resume_hint": "terminal",
    "watch_status": "terminal",
    "publish_dashboard": "wandb_dashboard",
    "log_summary": "wandb_summary",
}
__all__ = [  # pyright: ignore[reportUnsupportedDunderAll]
    "FORMATS",
    "about_halving",
    "compare",
    "judged_by",
    "log_summary",
    "print_result",
    "print_status",
    "publish_dashboard",
    "render_markdown",
    "render_report",
    "result_location",
    "resume_hint",
    "test_sentence",
    "watch_status",
    "without_seeds",
    "write_files",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
