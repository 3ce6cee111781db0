"""What tvf combine's methods do: validation and test scores of each, over several divisions.

Give the folders of sweeps that differ in data.split_seed alone, each of several seeds of one
configuration:

    for split in 1 2 3 4 5; do
        python train.py -m model.pct_unfreeze=0.25 epochs=6 data.split_seed=$split \\
            seed=1,2,3,4,5 tracker=none hydra.sweep.dir=outputs/sweeps/combine$split
    done
    python bench/combine.py outputs/sweeps/combine?

Unlike tvf combine it scores every method on the test images, so nothing may be chosen by its table.
Differences from the best job are paired by division; their 95 % intervals are those of Nadeau and
Bengio 2003, since the divisions share training images.
"""

import argparse
import math
from pathlib import Path
from statistics import fmean, stdev

from scipy.stats import t

from tvf.files import read_json
from tvf.inference import combine
from tvf.inference.choose import choose_jobs
from tvf.metrics import METRICS
from tvf.records import read_jobs

Scores = dict[str, tuple[float, float]]  # validation and test, by method
BEST = combine.BEST


def main() -> None:
    parser = argparse.ArgumentParser(description="What tvf combine's methods do.")
    parser.add_argument("sweeps", nargs="+", type=Path)
    sweeps: list[Path] = parser.parse_args().sweeps
    found: list[Scores] = []
    for sweep in sweeps:
        found.append(score_methods(sweep))
        print(sweep.name, found[-1], flush=True)
    shares = [_test_to_train(sweep) for sweep in sweeps]
    print("| method | divisions | validation | test | test, minus the best job |")
    print("|---|---|---|---|---|")
    for method in dict.fromkeys(name for scores in found for name in scores):
        rows = [(scores[method], scores[BEST]) for scores in found if method in scores]
        val, test = (fmean(own[split] for own, _ in rows) for split in (0, 1))
        gains = [own[1] - best[1] for own, best in rows]
        shown = "" if method == BEST else _interval(gains, fmean(shares))
        print(f"| {method} | {len(rows)} | {val:.3f} | {test:.3f} | {shown} |")


def score_methods(sweep: Path) -> Scores:
    """The scores of each method's candidate, and the mean of the single jobs."""
    folders = choose_jobs(sweep).folders
    best = folders[0]
    config, summary = read_json(best / "config.json"), read_json(best / "summary.json")
    combiner = combine._Combiner(best, config, trust_code=False)
    mates, states = combine._mates(sweep, best, config), [combine._read(each) for each in folders]
    single = combiner.evaluate(BEST, best.name, states[:1])
    candidates = [
        single,
        *combine._greedy_soup(combiner, mates),
        *combine._interpolate(combiner, config, len(summary["classes"]), single, False),
        combiner.evaluate(combine.ENSEMBLE, "all jobs", states),
    ]
    key = METRICS[combiner.metric]
    scores = {}
    for each in candidates:
        logits = combiner._logits(each.states, combiner.data.test)
        tested = combiner._scores(logits, "test")
        scores[each.method] = (each.score, float(getattr(tested, key)))
    jobs = [job for job in read_jobs(sweep) if job["state"] == "done"]
    means = [fmean(job[f"{split}_{key}"] for job in jobs) for split in ("val", "test")]
    return scores | {"a single job, on average": (means[0], means[1])}


def _test_to_train(sweep: Path) -> float:
    images = next(job["summary"]["images"] for job in read_jobs(sweep) if job["state"] == "done")
    return images["test"] / images["train"]


def _interval(gains: list[float], share: float) -> str:
    if len(gains) < 2:
        return f"{fmean(gains):+.3f}"
    margin = t.ppf(0.975, len(gains) - 1) * stdev(gains) * math.sqrt(1 / len(gains) + share)
    return f"{fmean(gains):+.3f} ({fmean(gains) - margin:+.3f} to {fmean(gains) + margin:+.3f})"


if __name__ == "__main__":
    main()
