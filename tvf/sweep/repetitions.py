"""Which trainings repeat those of a sweep, on divisions and with seeds that it has not used."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from tvf.config import build_part
from tvf.report import Training

FOLDS = 5  # for a sweep on a single split


@dataclass(frozen=True)
class Repetitions:
    """The trainings of each configuration: all combinations of `values`, by config key.

    `folds` is set where the images are divided into other folds than in the sweep. `note` says what
    is different in kind from the sweep; empty if nothing is.
    """

    values: dict[str, list[int]]
    folds: int | None = None
    note: str = ""

    @property
    def overrides(self) -> dict[str, str]:
        """The overrides that train all of them, by key."""
        texts = {key: f"{key}={','.join(map(str, each))}" for key, each in self.values.items()}
        return texts if self.folds is None else {"data.folds": f"data.folds={self.folds}"} | texts

    @property
    def number(self) -> int:
        """How many trainings of each configuration these are."""
        return math.prod(map(len, self.values.values()))

    def includes(self, training: Training) -> bool:
        """Return whether this training is one of them."""
        return all(
            getattr(training, key.rpartition(".")[2]) in each for key, each in self.values.items()
        )


def choose_repetitions(
    config: Mapping[str, Any],
    used: Sequence[Training],
    again: Sequence[Training],
    folds: int | None = None,
) -> Repetitions:
    """Choose as many trainings as there are in `again`, with values that are not in `used`.

    `config` is that of one of the jobs. With `folds`, the images are divided into so many folds; a
    single split is repeated by `FOLDS` folds. Where the validation images do not depend on
    data.split_seed, because the data set brings them, only the seeds are fresh. Raises InputError
    if the images cannot be divided like this.
    """
    data = config["data"]
    seeds = {"seed": fresh_values(used, again, "seed")}
    division = {"data.split_seed": fresh_values(used, again, "split_seed")}
    if data.get("outer_folds") is not None:
        division["data.outer_fold"] = _distinct(again, "outer_fold")
    if folds is None and not _depends_on_split_seed(config, division["data.split_seed"][0]):
        kept = _distinct(again, "split_seed")
        note = "The validation images do not depend on data.split_seed: only the seeds are fresh."
        return Repetitions(division | {"data.split_seed": kept} | seeds, note=note)
    note = ""
    if folds is None and data.get("folds") is None and len(division["data.split_seed"]) == 1:
        folds, seeds = FOLDS, {"seed": seeds["seed"][:1]}
        note = f"The sweep used one validation split: {FOLDS} folds confirm it."
    if folds is not None:
        division["data.fold"] = list(range(folds))
    elif data.get("folds") is not None:
        trained = _distinct(again, "fold")
        if len(trained) == 1:
            trained = list(range(data["folds"]))
            note = f"The sweep used one of {data['folds']} folds: all of them confirm it."
        division["data.fold"] = trained
    for split_seed in division["data.split_seed"]:
        changes = {} if folds is None else {"folds": folds}
        _validation_names(config, split_seed=split_seed, **changes)  # or an InputError
    return Repetitions(division | seeds, folds, note)


def fresh_values(used: Sequence[Training], again: Sequence[Training], name: str) -> list[int]:
    """Return as many values as the trainings in `again` have, above the largest one in `used`."""
    first = max(_distinct(used, name), default=0) + 1
    return list(range(first, first + max(len(_distinct(again, name)), 1)))


def _distinct(trainings: Sequence[Training], name: str) -> list[int]:
    values = (getattr(training, name) for training in trainings)
    return sorted({value for value in values if isinstance(value, int)})


def _depends_on_split_seed(config: Mapping[str, Any], split_seed: int) -> bool:
    """Whether other images validate with this split seed than with that of `config`."""
    names = _validation_names(config)
    return names is None or names != _validation_names(config, split_seed=split_seed)


def _validation_names(config: Mapping[str, Any], **changes: int) -> list[str] | None:
    """The names of the images that validate; None if the data source does not tell.

    Raises InputError if the images cannot be divided with these changes to the options.
    """
    from tvf.data import DataSource  # imports torch, which `tvf --help` does not need

    source = build_part(config, "data")
    if not isinstance(source, DataSource):
        return None
    return sorted(replace(source, **changes).validation_names())
