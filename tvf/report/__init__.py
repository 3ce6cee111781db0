"""The comparison of a sweep: statistics, a recommendation, tables, charts and pages.

The libraries for charts, pages and statistics (altair, jinja2, vl_convert, scipy) are not loaded
here but in the functions that need them, so that the terminal's table is quick.
"""

from tvf.report.calibration import calibration_of
from tvf.report.comparison import Comparison, compare, judged_by
from tvf.report.configuration import Configuration, Training, training_of
from tvf.report.confirmation import jobs_again, keys_of_seeds, stated_settings, to_confirm
from tvf.report.decide import probability_worse
from tvf.report.duel import Duel, compare_trainings
from tvf.report.formats import FORMATS, render_markdown, render_report, write_files
from tvf.report.model_card import describe_job, jobs_of_choice, write_card
from tvf.report.notes import about_halving
from tvf.report.seeds import without_seeds
from tvf.report.sentences import describe_test_score
from tvf.report.split_scores import Scores
from tvf.report.terminal import (
    print_result,
    print_status,
    result_location,
    resume_hint,
    watch_status,
)
from tvf.report.validated import match_images, score_images, standard_errors
from tvf.report.wandb_dashboard import publish_dashboard
from tvf.report.wandb_summary import log_summary

__all__ = [
    "Comparison",
    "Configuration",
    "Duel",
    "FORMATS",
    "Scores",
    "Training",
    "about_halving",
    "calibration_of",
    "compare",
    "compare_trainings",
    "describe_job",
    "describe_test_score",
    "jobs_again",
    "jobs_of_choice",
    "judged_by",
    "keys_of_seeds",
    "log_summary",
    "match_images",
    "print_result",
    "print_status",
    "probability_worse",
    "publish_dashboard",
    "render_markdown",
    "render_report",
    "result_location",
    "resume_hint",
    "score_images",
    "standard_errors",
    "stated_settings",
    "to_confirm",
    "training_of",
    "watch_status",
    "without_seeds",
    "write_card",
    "write_files",
]
