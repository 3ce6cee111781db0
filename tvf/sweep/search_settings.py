"""The settings of hydra/sweeper=optuna: what draws the trials, and what prunes them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from optuna.distributions import BaseDistribution
from optuna.pruners import BasePruner, MedianPruner, NopPruner, SuccessiveHalvingPruner
from optuna.samplers import BaseSampler, RandomSampler, TPESampler
from optuna.study import Study
from optuna.trial import FrozenTrial

from tvf.errors import InputError, require_choice, require_count, require_seed, unknown_key
from tvf.sweep.search_space import Dimension
from tvf.sweep.standings import common_epochs, first_decision

SAMPLERS = {"tpe": TPESampler, "random": RandomSampler}
PRUNERS = ("none", "halving", "median")


@dataclass(frozen=True)
class SearchSettings:
    """The options of hydra/sweeper=optuna, as conf/hydra/sweeper/optuna.yaml explains them."""

    n_trials: int = 20
    batch_size: int | None = None
    sampler: str = "tpe"
    seed: int = 1
    pruner: str = "none"
    eta: int = 2
    min_epochs: int = 1
    storage: str | None = None

    def __post_init__(self) -> None:
        require_count("hydra.sweeper.n_trials", self.n_trials, 1)
        if self.batch_size is not None:
            require_count("hydra.sweeper.batch_size", self.batch_size, 1)
        require_choice("hydra.sweeper.sampler", self.sampler, tuple(SAMPLERS))
        require_seed("hydra.sweeper.seed", self.seed)
        require_choice("hydra.sweeper.pruner", self.pruner, PRUNERS)
        require_count("hydra.sweeper.eta", self.eta, 2)
        require_count("hydra.sweeper.min_epochs", self.min_epochs, 1)

    def rungs(self, configs: Sequence[dict[str, Any]]) -> list[int]:
        """The epochs after which jobs with such configs may be pruned; none without a pruner."""
        if self.pruner == "none":
            return []
        epochs = common_epochs(configs, f"hydra.sweeper.pruner={self.pruner}")
        first = max(self.min_epochs, first_decision(configs))
        if first >= epochs:
            raise InputError(
                f"hydra.sweeper.pruner={self.pruner} can prune after epoch {first} at the "
                f"earliest, so epochs={epochs} must be more: raise epochs, or use "
                "hydra.sweeper.pruner=none."
            )
        rungs = [first]
        while rungs[-1] * self.eta < epochs:
            rungs.append(rungs[-1] * self.eta)
        return rungs

    def make_pruner(self, rungs: Sequence[int]) -> BasePruner:
        """The pruner of Optuna that is asked after each rung."""
        if self.pruner == "halving":
            return SuccessiveHalvingPruner(min_resource=rungs[0], reduction_factor=self.eta)
        return MedianPruner() if self.pruner == "median" else NopPruner()

    def make_sampler(self, dimensions: Mapping[str, Dimension], number: int) -> BaseSampler:
        """The sampler that draws the trial with this number, which decides its seed."""
        seed = int(np.random.SeedSequence([self.seed, number]).generate_state(1)[0])
        return Rounded(SAMPLERS[self.sampler](seed=seed), dimensions)


class Rounded(BaseSampler):
    """Another sampler, whose values are rounded: the study holds what the jobs are given."""

    def __init__(self, sampler: BaseSampler, dimensions: Mapping[str, Dimension]) -> None:
        self.sampler, self.dimensions = sampler, dimensions

    def infer_relative_search_space(
        self, study: Study, trial: FrozenTrial
    ) -> dict[str, BaseDistribution]:
        """The options that the sampler draws together."""
        return self.sampler.infer_relative_search_space(study, trial)

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Draw these options together."""
        drawn = self.sampler.sample_relative(study, trial, search_space)
        return {key: self.dimensions[key].round(value) for key, value in drawn.items()}

    def sample_independent(
        self,
        study: Study,
        trial: FrozenTrial,
        param_name: str,
        param_distribution: BaseDistribution,
    ) -> Any:
        """Draw one option alone."""
        drawn = self.sampler.sample_independent(study, trial, param_name, param_distribution)
        return self.dimensions[param_name].round(drawn)


def read_settings(sweeper: Mapping[str, Any]) -> SearchSettings:
    """Read the settings from hydra.sweeper; InputError for one that is unknown or wrong."""
    given = {key: value for key, value in sweeper.items() if key not in ("_target_", "params")}
    known = [field.name for field in fields(SearchSettings)]
    for key in given:
        if key not in known:
            raise unknown_key(f"hydra.sweeper.{key}", known, "hydra.sweeper.")
    return SearchSettings(**given)
