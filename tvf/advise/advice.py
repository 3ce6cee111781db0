"""Which fractions are promising, for 5 to 10 per cent of the price of the sweep that settles it.

Three kinds of evidence, each with its cost: what probes read at each depth, how hard the labels
pull at each group, and a short run of each fraction. Only the runs give probabilities; test images
take no part.
"""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

from tvf.advise.errors import errors_of, score_of_largest_class
from tvf.advise.survey import UNSTORED, Costs, DepthScore, config_at, survey_network
from tvf.advise.trials import Trial, run_trial, score_trials, take, within_margin
from tvf.config import Config, is_transfer, method_of
from tvf.data import DataSplits
from tvf.errors import InputError
from tvf.job import JobContext, explain_memory, open_job
from tvf.metrics import metric_of

FRACTIONS = (0.0, 0.25, 0.5, 1.0)
PROMISING = 0.1  # least probability of being within the margin
MOST_IMAGES = 4000  # of each split; more say little more
# A short run is this part of a job's training, and at most an epoch. The least keeps it from being
# nothing where a job has few images.
RUN_PART, LEAST_RUN = 1 / 8, 256


@dataclass(frozen=True)
class Fraction:
    """What a short run says of a fraction.

    `score` is on the validation images, `error` its standard error for other images,
    `error_to_first` that of its difference from the first of the ranking. `probability` is that of
    being within the margin of the best fraction.
    """

    fraction: float
    groups: tuple[str, ...]
    score: float
    probability: float
    seconds: float
    error: float = 0.0
    error_to_first: float = 0.0


@dataclass(frozen=True)
class Advice:
    """All evidence, and what it cost: `seconds`, by signal; `forward` and `trained` images.

    `fractions` are ranked, the most probable first; of equally probable ones the smallest.
    `all_depths` is the score of a probe on all depths at once, `all_depths_error` the standard
    error of its difference from the best depth; None if there is only one. `baseline` is the score
    of always predicting the largest class.
    `gradients` are relative gradient norms by group, shallowest first. `splits` counts images: also
    those that a short `run` trains on, and a whole `job`, each in all its epochs together.
    """

    metric: str
    margin: float
    baseline: float
    splits: Mapping[str, int]
    depths: Sequence[DepthScore]
    all_depths: float | None
    all_depths_error: float | None
    gradients: Mapping[str, float]
    fractions: Sequence[Fraction]
    seconds: Mapping[str, float]
    forward: int
    trained: int
    notes: Sequence[str]

    @property
    def promising(self) -> list[float]:
        """The fractions to compare properly, ascending: at least two."""
        likely = [each for each in self.fractions if each.probability >= PROMISING]
        chosen = likely if len(likely) > 1 else self.fractions[:2]
        return sorted(each.fraction for each in chosen)

    @property
    def probe_leads(self) -> bool:
        """Whether the probe of all depths has the highest score, and model=probe can train it."""
        if self.all_depths is None or any(note.startswith(UNSTORED) for note in self.notes):
            return False
        scores = [*(each.probe for each in self.depths), *(each.score for each in self.fractions)]
        return self.all_depths > max(scores)


def advise(config: Config, context: JobContext) -> Advice:
    """Collect the evidence for a job's config, whatever its fraction. Raises InputError."""
    check_config(config)
    costs = Costs()
    with explain_memory(config, context):
        with costs.timed("setup"):
            opened = ExitStack()
            job = opened.enter_context(open_job(config_at(config, 1.0), context))
        with opened:
            whole = job.phases.data
            data = job.phases.data = _limited(whole)
            survey = survey_network(job, config, context, costs)
        trials = _run_trials(config, context, whole, costs)
    metric, margin = metric_of(config), config["report"]["margin"]
    scores = score_trials(trials, metric)
    chances = within_margin(scores, margin)
    errors = errors_of([each.predictions for each in trials], metric)
    first = min(range(len(trials)), key=lambda place: (-chances[place], trials[place].fraction))
    tried = [
        Fraction(
            fraction=trial.fraction,
            groups=trial.groups,
            score=float(scores.means[place]),
            probability=chances[place],
            seconds=trial.seconds,
            error=float(errors[place, place]),
            error_to_first=0.0 if place == first else float(errors[place, first]),
        )
        for place, trial in enumerate(trials)
    ]
    return Advice(
        metric=metric,
        margin=margin,
        baseline=score_of_largest_class(data.val.labels, metric),
        splits={"train": len(whole.train), "val": len(whole.val), "judged": len(data.val)}
        | {"run": _run_images(config, data), "job": config["epochs"] * len(whole.train)},
        depths=survey.depths,
        all_depths=survey.all_depths,
        all_depths_error=survey.all_depths_error,
        gradients=survey.gradients,
        fractions=sorted(tried, key=lambda each: (-each.probability, each.fraction)),
        seconds=costs.seconds,
        forward=costs.forward,
        trained=costs.trained,
        notes=survey.notes,
    )


def check_config(config: Config) -> None:
    """Raise InputError for a job of which fractions cannot be judged on validation images."""
    model, data = config["model"], config["data"]
    if is_transfer(model):
        raise InputError(
            f"model={method_of(model).choice} trains none of the groups, so there is no fraction "
            "to advise on: leave model out."
        )
    for option in ("groups", "train"):
        if model.get(option) is not None:
            raise InputError(
                f"model.{option}={model[option]} names what trains, so there is no fraction to "
                "advise on: leave it out, or compare names in a sweep."
            )
    if "pct_unfreeze" not in model:
        raise InputError(
            f"model._target_={model['_target_']!r} has no fraction, model.pct_unfreeze, to advise "
            "on."
        )
    if config["refit_epochs"] is not None:
        raise InputError("refit_epochs must be null: it leaves no validation images to judge on.")
    if data.get("validate_on") == "test":
        raise InputError(
            "data.validate_on=test must be data.validate_on=split: advice is judged on validation "
            "images, and the test images must have no part in a choice."
        )


def _run_trials(
    config: Config, context: JobContext, whole: DataSplits, costs: Costs
) -> list[Trial]:
    """A short run of each fraction; fractions that train the same groups run once."""
    data, trials = _limited(whole), []
    images = _run_images(config, data)
    for fraction in FRACTIONS:
        with costs.timed("setup"):
            opened = ExitStack()
            job = opened.enter_context(open_job(config_at(config, fraction), context, whole))
        with opened, costs.timed("runs"):
            trained = tuple(group.name for group in job.phases.model.trained_groups)
            if trained in [trial.groups for trial in trials]:
                continue
            trials.append(run_trial(job, fraction, data, images))
            costs.trained += images
            costs.forward += len(data.val)
    return trials


def _run_images(config: Config, data: DataSplits) -> int:
    """The training images of a short run."""
    part = round(RUN_PART * config["epochs"] * len(data.train))
    return min(len(data.train), max(part, LEAST_RUN))


def _limited(data: DataSplits) -> DataSplits:
    """At most MOST_IMAGES of each split; InputError without validation images."""
    if not len(data.val):
        raise InputError(
            "there are no validation images to judge on: give the val split images, or set "
            "data.val_fraction."
        )
    train, val = take(data.train, MOST_IMAGES), take(data.val, MOST_IMAGES)
    return replace(data, train=train, val=val)
