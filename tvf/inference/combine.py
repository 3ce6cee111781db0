"""Combines the weights of a sweep's jobs into one model, without training.

Candidates are the best job, a greedy soup (Wortsman et al. 2022a, "Model soups"), weights between
the start and the end of fine-tuning (Wortsman et al. 2022b, WiSE-FT), and the ensemble of logits.
Validation images choose; the test images are used once, for what was chosen.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from tvf.config import OWN_MODELS, Config, is_probe, modern_node
from tvf.data import DataSplits, Split, split_batches
from tvf.errors import InputError
from tvf.files import (
    BEST_WEIGHTS,
    MODEL_CARD,
    encode_text,
    printable,
    read_json,
    write_json,
    write_whole,
)
from tvf.inference.choose import choose_jobs
from tvf.inference.load import load_job, member_weights, start_weights
from tvf.inference.trust import open_source
from tvf.metrics import METRICS, metric_of
from tvf.models import recalibrate_batchnorm, save_weights
from tvf.records import (
    Predictions,
    calibrate,
    predictions_of,
    read_jobs,
    read_trained_on,
    write_predictions,
)
from tvf.training import Scores, compute_scores

log = logging.getLogger(__name__)

COMBINED = "combine"  # in a sweep's folder: the folder of combined models, by method
BEST, SOUP, INTERPOLATED, ENSEMBLE = METHODS = ("best", "soup", "interpolated", "ensemble")
STEPS = 5  # between the start and the end of fine-tuning
RECALIBRATION = 1000  # training images that statistics of BatchNorm are computed from
State = dict[str, Tensor]


@dataclass(frozen=True)
class Candidate:
    """A way to combine jobs: its method, what it is made of, its validation score, its weights.

    Several sets of weights are an ensemble of their logits.
    """

    method: str
    made_of: str
    score: float
    states: Sequence[State]


@dataclass(frozen=True)
class Combination:
    """What was tried, in order, what validation chose, its folder and its test score.

    `absent` are the methods without a candidate, and why.
    """

    metric: str
    candidates: Sequence[Candidate]
    chosen: Candidate
    folder: Path
    test_score: float
    best_job_test_score: float | None
    absent: Mapping[str, str]


def combine_jobs(sweep: Path, trust_code: bool = False, method: str | None = None) -> Combination:
    """Combine the jobs of a sweep and write the best combination to the folder `combine` in it,
    in one named by its method.

    Jobs take part that share backbone and division with the best job of the configuration that the
    sweep recommends. Validation chooses, unless `method` names one of METHODS. Raises InputError if
    no job is done, if its images have changed, or if the method has no candidate.
    """
    from tvf.report import describe_job  # with the terminal's libraries

    best, *rest = choose_jobs(sweep).folders
    config, summary = read_json(best / "config.json"), read_json(best / "summary.json")
    combiner = _Combiner(best, config, trust_code)
    mates = _mates(sweep, best, config)
    own = [best, *(folder for folder in rest if folder in mates)]
    log.info("combining %d jobs of one division.", len(mates))
    single = combiner.evaluate(BEST, best.name, [_read(best)])
    candidates = [single]
    candidates += _greedy_soup(combiner, mates)
    candidates += _interpolate(combiner, config, len(summary["classes"]), single, trust_code)
    if len(own) > 1:
        made_of = f"logits of {len(own)} jobs"
        candidates.append(combiner.evaluate(ENSEMBLE, made_of, [_read(folder) for folder in own]))
    found = {each.method for each in candidates}
    absent = {each: _why_none(each, len(mates), len(own)) for each in METHODS if each not in found}
    if method in absent:
        raise InputError(f"--method {method}: {absent[method]}.")
    eligible = [each for each in candidates if method in (None, each.method)]
    chosen = max(eligible, key=lambda each: each.score)  # of equal ones the first, the simplest
    folder = sweep / COMBINED / chosen.method  # one level down, it is no job of the sweep
    test_score = combiner.write(chosen, folder, mates, summary)
    key = f"test_{METRICS[combiner.metric]}"
    write_whole(folder / MODEL_CARD, encode_text(describe_job(folder)))
    return Combination(
        combiner.metric, candidates, chosen, folder, test_score, summary.get(key), absent
    )


def _why_none(method: str, mates: int, own: int) -> str:
    if method == SOUP:
        if mates > 1:
            return "no other job makes the best one better by its weights"
        return "one job cannot be averaged; train several seeds or rates"
    if method == ENSEMBLE:
        return "its configuration has one job in this division; train several seeds"
    return "nothing but the head has trained, or the start of training is not here"


def _mates(sweep: Path, best: Path, config: Config) -> list[Path]:
    """The finished jobs with the backbone and the division of the best one; the best first."""
    metric = f"val_{METRICS[metric_of(config)]}"
    shared = _network_and_images(config)
    rows = [
        row
        for row in read_jobs(sweep)
        if row["state"] == "done"
        and row[metric] is not None
        and _network_and_images(row["config"]) == shared
    ]
    rows.sort(key=lambda row: (-row[metric], Path(row["path"]) != best))
    return [Path(row["path"]) for row in rows]


def _network_and_images(config: Config) -> list[Any]:
    """What jobs must have in common so that their weights can be averaged and compared."""
    model = config["model"]
    ordinary = modern_node(model).get("_target_") in OWN_MODELS and not is_probe(model)
    own = None if ordinary else model
    return [config.get("backbone"), config.get("data"), config.get("channels_last"), own]


def _greedy_soup(combiner: "_Combiner", mates: Sequence[Path]) -> list[Candidate]:
    """Add one job after the other, from the best on, as long as validation does not suffer.

    Returns no candidate if the best job stays alone.
    """
    members = [mates[0]]
    soup = combiner.evaluate(SOUP, mates[0].name, [_read(mates[0])])
    for folder in mates[1:]:
        states = [_read(each) for each in [*members, folder]]
        made_of = f"mean of {len(states)} of {len(mates)} jobs"
        average = combiner.average(states, [1 / len(states)] * len(states))
        tried = combiner.evaluate(SOUP, made_of, [average])
        if tried.score >= soup.score:
            soup, members = tried, [*members, folder]
    return [soup] if len(members) > 1 else []


def _interpolate(
    combiner: "_Combiner", config: Config, classes: int, single: Candidate, trust_code: bool
) -> list[Candidate]:
    """Weights between the start and the end of the best job's fine-tuning; the best of them.

    The new head, which the start does not have, stays as it is.
    """
    if is_probe(config["model"]):
        return []  # nothing but the head has trained
    try:
        start = start_weights(config, classes, trust_code)
    except InputError as error:
        log.warning("no interpolation with the start of fine-tuning: %s", error)
        return []
    (end,) = single.states
    heads = tuple(f"module.{head}." for head in combiner.heads)
    start = {name: end[name] if name.startswith(heads) else start[name] for name in end}
    if all(torch.equal(start[name], end[name]) for name in end):
        return []  # nothing but the head has trained
    tried = [
        combiner.evaluate(
            INTERPOLATED,
            f"{1 - share:.0%} of the start, {share:.0%} of the best job",
            [combiner.average([start, end], [1 - share, share])],
        )
        for share in (step / STEPS for step in range(1, STEPS))
    ]
    return [max(reversed(tried), key=lambda each: each.score)]


class _Combiner:
    """The network and its images: averages weights, scores them, and writes the result."""

    def __init__(self, best: Path, config: Config, trust_code: bool) -> None:
        self.config, self.metric = config, metric_of(config)
        self.network: Any = load_job(best, trust_code).module
        self.heads: Sequence[str] = self.network.heads
        self.data: DataSplits = open_source(config, trust_code).load(progress=True)
        recorded = (read_json(best / "summary.json").get("images") or {}).get("digests")
        if recorded is not None:
            found = self.data.digests
            if found != recorded:
                changed = ", ".join(name for name in found if found[name] != recorded.get(name))
                raise InputError(
                    f"the images of {printable(best)} have changed since it was trained "
                    f"({changed}): its validation score would not be of the same images."
                )
        self.batch_size: int = config["data"].get("batch_size", 32)

    def evaluate(self, method: str, made_of: str, states: Sequence[State]) -> Candidate:
        """Score weights on the validation images."""
        log.info("%s: %s", method, made_of)
        scores = self._scores(self._logits(states, self.data.val), "val")
        return Candidate(method, made_of, float(getattr(scores, METRICS[self.metric])), states)

    def average(self, states: Sequence[State], shares: Sequence[float]) -> State:
        """The weighted mean of weights.

        BatchNorm statistics that differ are computed anew from the training images: the mean of
        statistics is not that of the averaged network.
        """
        averaged = {name: _mean([state[name] for state in states], shares) for name in states[0]}
        differing = {
            name.rpartition(".")[0]
            for name in averaged
            if name.endswith(("running_mean", "running_var"))
            and not all(torch.equal(states[0][name], state[name]) for state in states)
        }
        if differing:
            self.network.load_state_dict(averaged)
            layers: Any = [self.network.get_submodule(name) for name in sorted(differing)]
            recalibrate_batchnorm(self.network, layers, self._run_training_images)
            averaged = {name: value.clone() for name, value in self.network.state_dict().items()}
        return averaged

    def write(
        self, chosen: Candidate, folder: Path, mates: Sequence[Path], summary: Mapping[str, Any]
    ) -> float:
        """Write the chosen model like a finished job; return its test score."""
        folder.mkdir(parents=True, exist_ok=True)
        predictions: dict[str, Predictions] = {}
        scores: dict[str, Any] = {}
        for name in ("val", "test"):
            split: Split = self.data.by_name[name]
            logits = self._logits(chosen.states, split)
            predictions[name] = predictions_of(split, logits.numpy())
            scores |= self._scores(logits, name).named(name)
        for number, state in enumerate(chosen.states):
            self.network.load_state_dict(state)
            path = folder / (BEST_WEIGHTS if len(chosen.states) == 1 else member_weights(number))
            save_weights(self.network, path, summary["best_epoch"])
        seen = [read_trained_on(mate) for mate in mates]
        known = [ids for ids in seen if ids is not None]
        write_predictions(
            folder, predictions, np.unique(np.concatenate(known)) if known else np.empty(0, "S32")
        )
        write_json(folder / "config.json", self.config)
        combination = {
            "method": chosen.method,
            "made_of": chosen.made_of,
            "members": len(chosen.states),
            "jobs": [mate.name for mate in mates],
        }
        kept = ("backbone", "data", "classes", "best_epoch", "metric", "images", "versions")
        record = {key: summary.get(key) for key in kept} | {
            "name": f"combined-{chosen.method}",
            "combination": combination,
            "calibration": calibrate({k: (p.logits, p.labels) for k, p in predictions.items()}),
            **scores,
        }
        write_json(folder / "summary.json", record)
        status = {"state": "done", "name": record["name"], "error": None}
        write_json(folder / "status.json", status)
        return scores[f"test_{METRICS[self.metric]}"]

    def _scores(self, logits: Tensor, name: str) -> Scores:
        labels = self.data.by_name[name].labels
        loss = float(cross_entropy(logits, labels))
        return compute_scores(
            logits, labels, loss, float((logits.argmax(1) == labels).double().mean())
        )

    def _logits(self, states: Sequence[State], split: Split) -> Tensor:
        members = []
        for state in states:
            self.network.load_state_dict(state)
            self.network.eval()
            members.append(torch.cat([*self._run(split, np.arange(len(split)))]))
        return torch.stack(members).mean(0)

    def _run_training_images(self) -> None:
        """Pass at most RECALIBRATION training images through the network, spread over all."""
        count = len(self.data.train)
        samples = np.linspace(0, count - 1, min(count, RECALIBRATION)).astype(np.int64)
        for _ in self._run(self.data.train, samples):
            pass

    def _run(self, split: Split, samples: np.ndarray) -> Iterator[Tensor]:
        with torch.no_grad():
            for batch in split_batches(samples, self.batch_size):
                yield self.network(split.pixels(batch)).float()


def _mean(values: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """The weighted mean; of integers, such as counters, the first."""
    if not values[0].is_floating_point():
        return values[0]
    pairs = zip(values, shares, strict=True)
    total = sum(value.double() * share for value, share in pairs)
    assert isinstance(total, Tensor)
    return total.to(values[0].dtype)


def _read(folder: Path) -> State:
    try:
        return safetensors.torch.load_file(folder / BEST_WEIGHTS)
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(
            f"{printable(folder / BEST_WEIGHTS)} cannot be read ({error}). Train the job again."
        ) from error
