"""A search by Optuna: trials are drawn in batches, trained as ordinary jobs, and told to a study.

The study in memory decides. Each batch is drawn from the trials before it and a seed of its own,
so a search that was killed draws its last batch again and finds the jobs where they were. The
database receives a batch when it has ended.
"""

import logging
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

import optuna
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from optuna.trial import FrozenTrial, Trial, TrialState

from tvf.config import explain_error, result_config
from tvf.errors import InputError, require_count
from tvf.metrics import WORDS, metric_of
from tvf.records import best_score, is_done, note_search, read_configs
from tvf.sweep.composing import (
    Jobs,
    check_jobs,
    compose_jobs,
    expand,
    note_jobs,
    place_jobs,
    refuse_refits,
    swept_lines,
)
from tvf.sweep.launchers import jobs_at_once, runs_elsewhere
from tvf.sweep.search_settings import SearchSettings, read_settings
from tvf.sweep.search_space import Space, read_space
from tvf.sweep.standings import (
    Candidate,
    are_interrupted,
    check_comparable,
    read_standing,
    unfinished,
    wait_for,
)
from tvf.sweep.study_storage import FILE, StoredStudy

log = logging.getLogger(__name__)

STATES = {
    TrialState.COMPLETE: "complete",
    TrialState.PRUNED: "pruned",
    TrialState.FAIL: "failed",
    TrialState.RUNNING: "running",
}
JOBS = "jobs"  # attribute of a trial: the folders of its jobs
Batch = list[list[str]]  # the overrides of jobs to launch


@dataclass(frozen=True)
class Drawn:
    """A trial of the current batch, with its jobs; none if they are misconfigured."""

    trial: Trial
    candidate: Candidate
    configs: Jobs


def open_search(config: DictConfig) -> "Search":
    """Open the search of this sweep, new or to be continued.

    Every value of every option is composed and checked once. Raises InputError or Hydra's errors.
    """
    sweeper: Any = OmegaConf.to_container(config.hydra.sweeper, resolve=True)
    settings, space = read_settings(sweeper), read_space(swept_lines(config))
    configs = _compose_probes(config, space)
    refuse_refits(configs)
    check_comparable(configs, "optuna")
    rungs = settings.rungs(configs)
    repetitions = len(expand(space.lines(space.probes()[0]), "optuna"))

    def size() -> int:
        return settings.batch_size or -(-_jobs_at_once(config) // repetitions)

    folder = Path(config.hydra.sweep.dir)
    if settings.storage is None and not (folder / FILE).exists():
        size()  # which may be an error, before anything is written
    stored = StoredStudy(folder, settings.storage, _asked(space, configs[0]), size)
    if settings.batch_size not in (None, stored.batch_size):
        log.warning(
            "hydra.sweeper.batch_size=%d is ignored: %s holds a search in batches of %d, and keeps "
            "to them. For other batches choose another folder with hydra.sweep.dir=.",
            settings.batch_size,
            folder,
            stored.batch_size,
        )
    return Search(config, settings, space, stored, rungs, metric_of(configs[0]))


def _compose_probes(config: DictConfig, space: Space) -> list[dict[str, Any]]:
    """The configs of the first values with all repetitions, and of one job for every other."""
    first, *others = (expand(space.lines(values), "optuna") for values in space.probes())
    return [job for _, job in compose_jobs(config, [*first, *(jobs[0] for jobs in others)])]


def _asked(space: Space, config: dict[str, Any]) -> dict[str, Any]:
    """What is searched and what is fixed, by dotted key: `config` is of a job of the search."""
    searched = {key: str(dimension.distribution) for key, dimension in space.dimensions.items()}
    return result_config(config) | searched | space.repeated


def _jobs_at_once(config: DictConfig) -> int:
    """How many jobs run at once by the launcher. Raises InputError if it does not say."""
    launcher = config.hydra.launcher
    if not runs_elsewhere(launcher):
        return jobs_at_once(launcher)
    most = launcher.get("max_running")
    if most is None:
        raise InputError(
            "hydra.sweeper.batch_size=null must be a number with a hydra/launcher for other "
            "machines, which may run any number of jobs: set it to the trials to train at once, "
            "as in hydra.sweeper.batch_size=8."
        )
    require_count("hydra.launcher.max_running", most, 1)
    return most


class Search:
    """A search whose study has the trials in `stored` so far.

    Trials are judged by `metric` after each rung, an epoch, and at their end. `jobs` are the
    folders of all jobs drawn so far.
    """

    def __init__(
        self,
        config: DictConfig,
        settings: SearchSettings,
        space: Space,
        stored: StoredStudy,
        rungs: Sequence[int],
        metric: str,
    ) -> None:
        self.config, self.settings, self.space = config, settings, space
        self.stored, self.rungs, self.metric = stored, rungs, metric
        self.folder = Path(config.hydra.sweep.dir)
        recorded, size = stored.trials(), stored.batch_size
        # A batch that was cut off, or that has room for more trials now, is drawn as a whole.
        over = len(recorded) >= settings.n_trials
        whole = len(recorded) if over else len(recorded) // size * size
        self.study = optuna.create_study(direction="maximize", pruner=settings.make_pruner(rungs))
        self.study.add_trials(recorded[:whole])
        self._cut_off = {trial.number: trial for trial in recorded[whole:]}
        self.jobs = {name for trial in recorded for name in trial.user_attrs.get(JOBS, ())}
        self._images_read = False

    @property
    def is_over(self) -> bool:
        """Whether all trials have ended."""
        return len(self._trials()) >= self.settings.n_trials

    def batches(self) -> Iterator[Batch]:
        """Yield the overrides of the jobs to launch; a batch of trials takes several with a pruner.

        Ends early if jobs were interrupted.
        """
        log.info(
            "Search: %d trials in batches of %d over %s.",
            self.settings.n_trials,
            self.stored.batch_size,
            ", ".join(self.space.dimensions),
        )
        while not self.is_over:
            batch = self._draw_batch()
            self.note()
            if not (yield from self._train(batch)):
                log.error("Jobs of the search were interrupted.")
                return
            self.stored.add(self._trials())
            self.note()

    def note(self) -> None:
        """Write the trials so far to the sweep's manifest."""
        numbered = self._cut_off | {trial.number: trial for trial in self._trials()}
        note_search(
            self.folder,
            {
                "n_trials": self.settings.n_trials,
                "sampler": self.settings.sampler,
                "pruner": self.settings.pruner,
                "trials": [_describe(trial) for _, trial in sorted(numbered.items())],
            },
        )

    def decided_jobs(self) -> Jobs:
        """Return the configs of the jobs of all trials so far, by folder name."""
        configs = read_configs(self.folder)
        return {name: configs[name] for name in sorted(self.jobs) if name in configs}

    def _trials(self) -> list[FrozenTrial]:
        return self.study.get_trials(deepcopy=False)

    def _draw_batch(self) -> list[Drawn]:
        first, size = len(self._trials()), self.stored.batch_size
        end = min((first // size + 1) * size, self.settings.n_trials)
        return [self._draw(number) for number in range(first, end)]

    def _draw(self, number: int) -> Drawn:
        """Draw the trial with this number, and add its jobs to the sweep."""
        if number in self._cut_off:
            self.study.enqueue_trial(self._cut_off[number].params)
        self.study.sampler = self.settings.make_sampler(self.space.dimensions, number)
        trial = self.study.ask(self.space.distributions)
        drawn = self.space.dimensions.items()
        label = " ".join(dimension.override(trial.params[key]) for key, dimension in drawn)
        try:
            overrides = expand(self.space.lines(trial.params), "optuna")
            names, configs, same = place_jobs(self.config, overrides)
        except (InputError, HydraException, OmegaConfBaseException) as error:
            log.error("%s cannot be trained: %s", label, explain_error(error))
            names, configs, overrides = [], {}, []
        else:
            check_jobs(self.folder, configs, images=not self._images_read)
            note_jobs(self.folder, configs, same)
            self._images_read = True
        self.jobs |= {*names}
        trial.set_user_attr(JOBS, names)
        return Drawn(trial, Candidate(label, dict(zip(names, overrides, strict=True))), configs)

    def _train(self, batch: Sequence[Drawn]) -> Generator[Batch, None, bool]:
        """Launch the jobs of a batch, rung by rung, and tell the study how its trials end.

        Returns whether they have ended: not if jobs were interrupted.
        """
        left = [drawn for drawn in batch if not self._is_misconfigured(drawn)]
        configs = {name: config for drawn in left for name, config in drawn.configs.items()}
        for budget in (*self.rungs, None):
            candidates = [drawn.candidate for drawn in left]
            if jobs := unfinished(self.folder, configs, candidates, budget):
                pause = [] if budget is None else [f"stop_after={budget}"]
                yield [[*job, *pause] for job in jobs]
            wait_for(self.folder, candidates)
            if are_interrupted(self.folder, candidates, budget):
                return False
            left = [drawn for drawn in left if not self._ends(drawn, budget)]
        return True

    def _is_misconfigured(self, drawn: Drawn) -> bool:
        if not drawn.configs:
            self._tell(drawn, TrialState.FAIL)
        return not drawn.configs

    def _ends(self, drawn: Drawn, budget: int | None) -> bool:
        """Judge a trial after the rung `budget`, or at its end; return whether it has ended."""
        if budget is None:
            scores = [
                best_score(self.folder / name) if is_done(self.folder / name, config) else None
                for name, config in drawn.configs.items()
            ]
            known = [score for score in scores if score is not None]
            score = round(fmean(known), 9) if len(known) == len(scores) else None
        else:
            score = read_standing(self.folder, self.metric, drawn.candidate, budget).score
        if score is None:
            self._tell(drawn, TrialState.FAIL)
        elif budget is None:
            self._tell(drawn, TrialState.COMPLETE, score)
        else:
            drawn.trial.report(score, budget)
            if not drawn.trial.should_prune():
                return False
            self._tell(drawn, TrialState.PRUNED, epoch=budget)
        return True

    def _tell(
        self, drawn: Drawn, state: TrialState, score: float | None = None, epoch: int | None = None
    ) -> None:
        """Tell the study, and the user, how a trial ended."""
        self.study.tell(drawn.trial, score, state)
        how = STATES[state]
        if state == TrialState.PRUNED:
            how += f" after epoch {epoch}"
        elif score is not None:
            how = f"{WORDS[self.metric]} {score:.3f}, best so far {self.study.best_value:.3f}"
        log.info(
            "Trial %d of %d (%s): %s.",
            drawn.trial.number + 1,
            self.settings.n_trials,
            drawn.candidate.label,
            how,
        )


def _describe(trial: FrozenTrial) -> dict[str, Any]:
    """A trial for the manifest."""
    return {
        "state": STATES[trial.state],
        "score": trial.value,
        "epochs": trial.last_step if trial.state == TrialState.PRUNED else None,
        "values": trial.params,
        "jobs": trial.user_attrs.get(JOBS, []),
    }
