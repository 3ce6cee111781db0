"""How the pool is divided into train, val and test: by fractions or folds, with groups kept whole.

Every division is a function of the catalog and the options alone, so jobs with other seeds share
it. Splits are stratified: each has about the same share of every class.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from tvf.data.pool import PARTS, Catalog
from tvf.errors import InputError, require_count, require_number, require_seed

ATTEMPTS = 20  # at dividing groups evenly


@dataclass(frozen=True, kw_only=True)
class SplitOptions:
    """How a data set is divided where it does not come divided.

    `split_seed` draws the division. `test_fraction` of the images become the test split, or fold
    `outer_fold` (from 0) of `outer_folds`. Of the rest, `val_fraction` become the val split, or
    fold `fold` of `folds`. `limit` keeps about so many images of all, `train_limit` of the training
    split alone; smaller limits keep a subset of what larger ones keep.
    """

    split_seed: int = 0
    val_fraction: float = 0.2
    test_fraction: float = 0.25
    folds: int | None = None
    fold: int = 0
    outer_folds: int | None = None
    outer_fold: int = 0
    limit: int | None = None
    train_limit: int | None = None

    def __post_init__(self) -> None:
        require_seed("data.split_seed", self.split_seed)
        for name in ("val_fraction", "test_fraction"):
            require_number(f"data.{name}", getattr(self, name), 0, 0.9, above=True)
        for name in ("limit", "train_limit"):
            if getattr(self, name) is not None:
                require_count(f"data.{name}", getattr(self, name), 1)
        _require_fold("fold", self.fold, "folds", self.folds)
        _require_fold("outer_fold", self.outer_fold, "outer_folds", self.outer_folds)


def _require_fold(name: str, fold: int, count_name: str, count: int | None) -> None:
    if count is not None:
        require_count(f"data.{count_name}", count, 2)
    require_count(f"data.{name}", fold, 0)
    if count is None and fold:
        raise InputError(
            f"data.{name}={fold} needs data.{count_name}, the number of folds: "
            f"data.{count_name}=5 data.{name}=0,1,2,3,4."
        )
    if count is not None and fold >= count:
        raise InputError(
            f"data.{name}={fold} must be at most {count - 1}: data.{count_name}={count} has folds "
            f"0 to {count - 1}."
        )


def divide(catalog: Catalog, options: SplitOptions) -> dict[str, np.ndarray]:
    """Return the places of each split in the catalog, ascending.

    Raises InputError if a split would lack a class.
    """
    part = np.full(len(catalog), "") if catalog.parts is None else catalog.parts
    given = {name: np.flatnonzero(part == name) for name in PARTS}
    rest = np.flatnonzero((part == "") | (part == "train"))
    strata = catalog.labels if catalog.strata is None else catalog.strata
    division = _Division(strata, catalog.groups, options.split_seed)
    if len(given["test"]):
        if options.outer_folds is not None:
            raise InputError(
                f"data.outer_folds={options.outer_folds} takes the test images from all images, "
                "but this data set has its own test images: remove data.outer_folds, or the test/ "
                "folder or split."
            )
        test = given["test"]
    elif options.outer_folds is not None:
        outer = np.union1d(rest, given["val"])
        rest, test = division.fold(outer, options.outer_folds, options.outer_fold)
    else:
        rest, test = division.fraction(rest, options.test_fraction)
    folds: list[tuple[np.ndarray, np.ndarray]] = []
    if catalog.val_is_test:
        if options.folds is not None:
            raise InputError(
                f"data.folds={options.folds} cannot be used with data.validate_on=test: the test "
                "images validate. Remove one of them."
            )
        train, val = rest, test
    elif options.folds is not None:
        rest = np.setdiff1d(np.union1d(rest, given["val"]), test)
        folds = [division.fold(rest, options.folds, fold) for fold in range(options.folds)]
        train, val = folds[options.fold]
    elif len(given["val"]) and options.outer_folds is None:
        train, val = rest, given["val"]
    else:
        train, val = division.fraction(rest, options.val_fraction)
    if options.train_limit is not None:
        train = division.limit(train, options.train_limit)
    splits = {"train": train, "val": val, "test": test}
    for fold in folds:  # all of them: otherwise a sweep would lose some, one by one
        require_classes({"train": fold[0], "val": fold[1]}, catalog)
        _require_weights(fold[0], catalog)
    # Splits that the data set brings may lack classes, except the one to train on.
    divided = {
        name: places
        for name, places in splits.items()
        if name == "train" or not len(given[name]) or not np.array_equal(places, given[name])
    }
    require_classes(divided, catalog)
    _require_weights(splits["train"], catalog)
    _require_whole_groups(splits, catalog)
    return splits


def limit_pool(catalog: Catalog, options: SplitOptions) -> np.ndarray:
    """The places of about `limit` images, stratified by part and class; all without a limit."""
    places = np.arange(len(catalog))
    if options.limit is None or options.limit >= len(places):
        return places
    part = np.full(len(catalog), "") if catalog.parts is None else catalog.parts
    strata = catalog.labels if catalog.strata is None else catalog.strata
    _, combined = np.unique(
        np.stack([np.unique(part, return_inverse=True)[1], strata]), axis=1, return_inverse=True
    )
    # The same pool for every split seed, so that divisions share it.
    return _Division(combined.reshape(-1), None, seed=0).limit(places, options.limit)


@dataclass(frozen=True)
class _Division:
    """Divides places of a catalog, keeping the shares of strata and the groups whole."""

    strata: np.ndarray
    groups: np.ndarray | None
    seed: int

    def fraction(self, places: np.ndarray, fraction: float) -> tuple[np.ndarray, np.ndarray]:
        """Return (rest, split), with about `fraction` of the places in the split."""
        if self.groups is not None:
            sides = self._assign_groups(places, [1 - fraction, fraction])
            return places[sides == 0], places[sides == 1]
        split = np.zeros(len(places), bool)
        split[self._interleave(places, 0)[: int(fraction * len(places))]] = True
        return places[~split], places[split]

    def fold(self, places: np.ndarray, folds: int, fold: int) -> tuple[np.ndarray, np.ndarray]:
        """Return (rest, split), where the split is one of `folds` folds of the places."""
        if self.groups is not None:
            number = self._assign_groups(places, [1 / folds] * folds)
        else:
            number = self._assign_folds(places, folds)
        return places[number != fold], places[number == fold]

    def limit(self, places: np.ndarray, limit: int) -> np.ndarray:
        """Return about `limit` of the places, ascending: a prefix of one order for all limits."""
        if limit >= len(places):
            return places
        if self.groups is None:
            order = places[self._interleave(places, 1)]
            return np.sort(order[:limit])
        groups, inverse, sizes = np.unique(
            self.groups[places], return_inverse=True, return_counts=True
        )
        order = np.random.default_rng([self.seed, 1]).permutation(len(groups))
        totals = np.cumsum(sizes[order])
        count = int(np.argmin(abs(totals - limit))) + 1
        return places[np.isin(inverse, order[:count])]

    def _interleave(self, places: np.ndarray, purpose: int) -> np.ndarray:
        """An order of the places whose every prefix has about the same share of each stratum."""
        generator = np.random.default_rng([self.seed, purpose])
        position = np.empty(len(places))
        for stratum in np.unique(self.strata[places]):
            members = np.flatnonzero(self.strata[places] == stratum)
            shuffled = generator.permutation(members)
            position[shuffled] = (np.arange(len(members)) + generator.random()) / len(members)
        return np.argsort(position, kind="stable")

    def _assign_folds(self, places: np.ndarray, folds: int) -> np.ndarray:
        """The fold of each place: within each stratum, folds differ by at most one image."""
        generator = np.random.default_rng([self.seed, 2])
        number, start = np.empty(len(places), np.int64), 0
        for stratum in np.unique(self.strata[places]):
            members = generator.permutation(np.flatnonzero(self.strata[places] == stratum))
            number[members] = (start + np.arange(len(members))) % folds
            start += len(members)  # the next stratum continues, so that sizes are equal as well
        return number

    def _assign_groups(self, places: np.ndarray, shares: Sequence[float]) -> np.ndarray:
        """The side of each place, 0 to len(shares) - 1; all places of a group have the same.

        Of several random assignments, takes the one whose sides are closest to their shares of each
        stratum and of all images.
        """
        assert self.groups is not None
        _, group = np.unique(self.groups[places], return_inverse=True)
        count = len(np.unique(group))
        if count < len(shares):
            raise InputError(
                f"{count} group{'' if count == 1 else 's'} of images cannot be divided into "
                f"{len(shares)} sides: each needs a group of its own. Use fewer folds, smaller "
                "groups or more images."
            )
        _, stratum = np.unique(self.strata[places], return_inverse=True)
        counts = np.zeros((group.max() + 1, stratum.max() + 1))
        np.add.at(counts, (group, stratum), 1)
        counts = np.column_stack([counts, counts.sum(1)])
        generator = np.random.default_rng([self.seed, 3])
        attempts = min(ATTEMPTS, max(1, 10_000 // len(counts)))
        dealt = [_deal(counts, np.array(shares), generator) for _ in range(attempts)]
        return min(dealt, key=lambda pair: pair[0])[1][group]


def _deal(
    counts: np.ndarray, shares: np.ndarray, generator: np.random.Generator
) -> tuple[float, np.ndarray]:
    """Deal groups to sides at random; return how unbalanced the sides are, and each group's side.

    `counts[g]` counts the images of group g in each stratum and in all. Larger groups come first;
    each goes to the side that it brings closest to its share.
    """
    target = np.outer(shares, counts.sum(0))
    filled = np.zeros_like(target)
    shuffled = generator.permutation(len(counts))
    # Sizes within a factor of two count as equal, so that the order stays random.
    size = np.floor(np.log2(counts[shuffled, -1]))
    side = np.empty(len(counts), np.int64)
    for group in shuffled[np.argsort(-size, kind="stable")]:
        # The increase of the sum of (filled - target)**2 / target if the side takes the group.
        increase = (counts[group] * (2 * (filled - target) + counts[group]) / target).sum(1)
        side[group] = increase.argmin()
        filled[side[group]] += counts[group]
    return float(((filled - target) ** 2 / target).sum()), side


def require_classes(splits: Mapping[str, np.ndarray], catalog: Catalog) -> None:
    """Raise InputError if one of these splits lacks a class."""
    total = sum(map(len, splits.values()))
    for name, places in splits.items():
        present = np.unique(catalog.labels[places])
        missing = [c for number, c in enumerate(catalog.classes) if number not in present]
        if not missing:
            continue
        pool = f"{total} images"
        if catalog.groups is not None:
            kept = np.concatenate(list(splits.values()))
            pool += f" in {len(np.unique(catalog.groups[kept]))} groups"
        raise InputError(
            f"{pool} cannot be divided so that each split has an image of each class: the {name} "
            f"split ({len(places)} images) has none of class {missing[0]}. Add images, use fewer "
            "folds, or raise data.val_fraction, data.test_fraction or the limits."
        )


def _require_weights(train: np.ndarray, catalog: Catalog) -> None:
    """Raise InputError if all training images of a class have the weight 0."""
    if catalog.weights is None:
        return
    totals = np.bincount(catalog.labels[train], catalog.weights[train], len(catalog.classes))
    if not totals.all():
        raise InputError(
            f"all training images of class {catalog.classes[int(totals.argmin())]} have the weight "
            "0, so nothing can be learnt about it: give some of them a weight, or remove the class."
        )


def _require_whole_groups(splits: Mapping[str, np.ndarray], catalog: Catalog) -> None:
    """Raise InputError if the splits that the data set brings cut a group."""
    if catalog.groups is None:
        return
    for one, other in (("train", "val"), ("train", "test"), ("val", "test")):
        if catalog.val_is_test and one == "val":
            continue
        here, there = splits[one], splits[other]
        shared = np.intersect1d(catalog.groups[here], catalog.groups[there])
        if not len(shared):
            continue
        names = [
            catalog.names[int(places[catalog.groups[places] == shared[0]][0])]
            for places in (here, there)
        ]
        raise InputError(
            f"{len(shared)} groups are in two splits, {one} and {other} ({names[0]} and {names[1]} "
            "are of one group): give the images of a group one split, or remove the val/ and test/ "
            "folders or the column of splits, so that the images are divided by group."
        )
