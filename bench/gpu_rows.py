"""The rows of bench/gpu.py: what is run for each, and what is kept of it."""

import os
import platform
import subprocess
from collections.abc import Callable
from contextlib import suppress
from importlib.util import find_spec
from statistics import mean, median
from typing import Any

import torch
from gpu_bench import ROOT, Bench, Sizes

FRACTIONS = (0.0, 0.25, 0.5, 1.0)
TEST_SECONDS = 120  # for the tests: a hanging one must not cost the other rows


def machine(bench: Bench) -> dict[str, Any]:
    """What everything was measured on."""
    found: dict[str, Any] = {"cores": os.cpu_count(), "python": platform.python_version()}
    found |= {"torch": torch.__version__, "device": bench.device}
    if bench.device == "cuda":
        query = [
            "nvidia-smi",
            "--query-gpu=name,driver_version,memory.total",
            "--format=csv,noheader",
        ]
        with suppress(OSError):
            found["gpu"] = subprocess.run(query, capture_output=True, text=True).stdout.strip()
        found |= {"cuda": torch.version.cuda, "cudnn": torch.backends.cudnn.version()}
    return found


def tests(bench: Bench) -> dict[str, Any]:
    """The tests marked gpu; without one, the same tests on the CPU."""
    files = ["job/test_on_devices.py", "job/test_shared_heads.py", "frontier/test_residency.py"]
    files += ["data/test_augment.py", "training/test_linear.py", "training/test_host_reads.py"]
    if find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    options = ["-q", "-p", "no:cacheprovider", "-W", "default", "--durations=0"]
    marks = ["-m", "gpu"] if bench.device == "cuda" else ["-m", "not slow", "-k", "cpu"]
    paths = [str(ROOT / "tests" / file) for file in files]
    path = f"{ROOT / 'tests'}{os.pathsep}{bench.environment['PYTHONPATH']}"
    try:
        command = ("-m", "pytest", *options, *marks, *paths)
        lines = bench.call(*command, limit=TEST_SECONDS, PYTHONPATH=path).strip().splitlines()
        warned = [line.strip() for line in lines if "Warning: " in line]
        return {"tests": lines[-1], "warnings": list(dict.fromkeys(warned))[:5]}
    except subprocess.TimeoutExpired as error:
        return {
            "failed": f"longer than {error.timeout:.0f} s",
            "printed": error.output[-1500:],
        }
    except RuntimeError as error:
        lines = [line for line in str(error).splitlines() if line.startswith(("FAILED", "E  "))]
        return {"failed": lines or str(error)[-1500:]}


def sweep(
    batch: int, bf16: bool = False, jobs: Any = "auto", styles: tuple[str, ...] = ("tuned",)
) -> Callable[[Bench], dict[str, Any]]:
    """4 fractions × seeds: tvf, with so many jobs on a GPU at once, and the loops."""

    def row(bench: Bench) -> dict[str, Any]:
        sizes = bench.sizes
        seeds = ",".join(map(str, range(1, sizes.seeds + 1)))
        grid = ["model.pct_unfreeze=0,0.25,0.5,1.0", f"seed={seeds}", f"data.batch_size={batch}"]
        grid += ["fabric.precision=bf16-mixed"] if bf16 else []
        run = bench.tvf(f"sweep-{batch}-{bf16}-{jobs}", *grid, f"fabric.jobs_per_gpu={jobs}")
        found: dict[str, Any] = {f"tvf, jobs_per_gpu={jobs}": round(run["seconds"], 1)}
        found["utilisation"] = round(mean(run["use"])) if run["use"] else None
        found["scores"] = scores(run["jobs"])
        if jobs == 1:  # start-up: of the sweep, and of CUDA and libraries in each job
            own = sum(job["train_seconds"] + job["test_seconds"] for job in run["jobs"])
            found["besides training, s per job"] = round(
                (run["seconds"] - own) / len(run["jobs"]), 2
            )
        for style in styles:
            options = {"batch": batch, "bf16": bf16, "epochs": min(3, sizes.epochs)}
            loop = bench.ask("gpu_loops.py", "lite0", style, **options)
            found[style] = project(loop, sizes.epochs, dict.fromkeys(FRACTIONS, sizes.seeds))
            found[f"over {style}"] = round(found[style]["seconds"] / run["seconds"], 2)
        return found

    return row


def heads(bench: Bench) -> dict[str, Any]:
    """Many heads on one network: seeds × learning rates, in one process (the default) or 4."""
    seeds, rates = bench.sizes.heads
    values = [f"{1e-3 * 3**power:.1e}" for power in range(-(rates // 2), rates - rates // 2)]
    numbers = ",".join(map(str, range(1, seeds + 1)))
    grid = ["model=transfer", f"seed={numbers}", f"optimizer.lr={','.join(values)}"]
    found: dict[str, Any] = {}
    seconds = []
    for jobs in (1, 4):
        name = f"heads-{jobs}"
        run = bench.tvf(name, *grid, "data.batch_size=32", f"fabric.jobs_per_gpu={jobs}")
        found |= {f"tvf, jobs_per_gpu={jobs}": round(run["seconds"], 1), "jobs": len(run["jobs"])}
        seconds.append(run["seconds"])
    loop = bench.ask("gpu_loops.py", "lite0", "tuned", batch=32, fractions=0, epochs=2)
    found["tuned"] = project(loop, bench.sizes.epochs, {0.0: seeds * rates})
    return found | {"over tuned": round(found["tuned"]["seconds"] / seconds[0], 2)}


def cuda_graphs(bench: Bench) -> dict[str, Any]:
    """Images a second in training in the last epoch, kernel by kernel and with CUDA graphs."""
    batch = bench.sizes.batches[0]
    grid = ["model.pct_unfreeze=0.25,0.5,1.0", "seed=1", f"data.batch_size={batch}", "epochs=3"]
    found: dict[str, Any] = {"batch": batch}
    for mode in ("off", "auto"):
        how = [f"fabric.compile={mode}", "hydra/launcher=basic"]
        run = bench.tvf(f"graphs-{mode}", *grid, *how, store="graphs-store")
        for job in run["jobs"]:
            row = found.setdefault(f"{job['pct_unfreeze']:g}", {})
            row[f"compile={mode}"] = round(job["rows"][-1]["images_per_second"])
            if mode == "auto":
                row["graphs in use"] = job["cuda_graphs"]
    return found


def suffixes(bench: Bench) -> dict[str, Any]:
    """Images a second in training, alone on the GPU, and the limit of the card's convolutions."""
    batch = bench.sizes.batches[-1]
    run = bench.tvf(
        "suffixes",
        "model.pct_unfreeze=0,0.25,0.5,1.0",
        "seed=1",
        f"data.batch_size={batch}",
        "hydra/launcher=basic",
        store="suffixes-store",
    )
    limits = bench.ask("gpu_checks.py", "limits", batch=batch)
    found: dict[str, Any] = {"batch": batch, "utilisation": round(mean(run["use"] or [0]))}
    for job in run["jobs"]:
        rate, limit = job["images_per_second"], limits[f"{job['pct_unfreeze']:g}"]
        memory = job.get("peak_device_memory_mb")
        found[f"{job['pct_unfreeze']:g}"] = {
            "images_per_second": round(rate),
            "convolutions_alone": round(limit),
            "share": round(rate / limit, 3),
            "peak_device_memory_mb": memory and round(memory),
        }
    return found


def resnet50(bench: Bench) -> dict[str, Any]:
    """ResNet50 with random weights, trained whole in bf16: images a second."""
    size, batch, epochs = bench.sizes.large
    run = bench.tvf(
        "resnet50",
        "backbone=resnet50",
        "backbone.weights=null",
        "model.pct_unfreeze=1.0",
        f"data.image_size={size}",
        f"data.batch_size={batch}",
        f"epochs={epochs}",
        "fabric.precision=bf16-mixed",
        "fabric.compile=on",
    )
    own = max(row["images_per_second"] for row in run["jobs"][0]["rows"])
    options = {"size": size, "batch": batch, "epochs": epochs, "bf16": True}
    loop = bench.ask("gpu_loops.py", "resnet50", "tuned", **options)["images_per_second"]
    found = {"tvf": round(own), "torchvision's way": round(loop), "ratio": round(own / loop, 3)}
    used = {"CUDA graphs": run["jobs"][0]["cuda_graphs"]}
    return {"images": size, "batch": batch, **found, **used}


def bits(bench: Bench) -> dict[str, Any]:
    """Which repetitions are equal bit for bit; `deterministic` is set before CUDA is used."""
    batch = min(bench.sizes.batches)
    questions = ("bits", "deterministic-bits")
    answers = [bench.ask("gpu_checks.py", question, batch=batch) for question in questions]
    return answers[0] | answers[1]


def compiled(bench: Bench) -> dict[str, Any]:
    """What torch.compile gives the tuned loop where everything trains: the first epoch compiles."""
    options = {"batch": bench.sizes.batches[0], "fractions": bench.sizes.compiled, "compiled": True}
    loop = bench.ask("gpu_loops.py", "lite0", "tuned", epochs=min(3, bench.sizes.epochs), **options)
    return {
        "epoch_seconds": [
            round(s, 2) for s in loop["jobs"][f"{bench.sizes.compiled:g}"]["epoch_seconds"]
        ]
    }


def project(loop: dict[str, Any], epochs: int, jobs: dict[float, int]) -> dict[str, float]:
    """Seconds of these numbers of jobs, by fraction, after one start and after one start each."""
    total = 0.0
    for fraction, count in jobs.items():
        job = loop["jobs"][f"{fraction:g}"]
        total += count * (epochs * median(job["epoch_seconds"]) + job["test_seconds"])
    start = loop["start_seconds"]
    each = total + start * sum(jobs.values())
    return {"seconds": round(total + start, 1), "started each": round(each, 1)}


def scores(jobs: list[dict[str, Any]]) -> dict[str, list[float]]:
    """The validation accuracies of each fraction."""
    by_fraction: dict[str, list[float]] = {}
    for job in jobs:
        by_fraction.setdefault(f"{job['pct_unfreeze']:g}", []).append(round(job["val_acc"], 3))
    return by_fraction


def rows_of(sizes: Sizes) -> list[tuple[str, Callable[[Bench], dict[str, Any]]]]:
    """All rows, the most important ones first."""
    first, last = sizes.batches[0], sizes.batches[-1]
    heads_alone, name = sizes.heads[0] * sizes.heads[1], f"4 fractions × {sizes.seeds} seeds"
    return [
        ("machine", machine),
        ("tests", tests),
        (f"{name}, batch {first}", sweep(first, styles=("tuned", "plain"))),
        (f"{heads_alone} heads", heads),
        (f"{name}, batch {first}, one job at a time", sweep(first, jobs=1, styles=())),
        ("CUDA graphs", cuda_graphs),
        (f"{name}, batch {first}, four jobs at a time", sweep(first, jobs=4, styles=())),
        (f"{name}, batch {last}", sweep(last)),
        ("equal bits", bits),
        ("ResNet50, whole", resnet50),
        ("suffixes", suffixes),
        (f"{name}, batch {last}, bf16", sweep(last, bf16=True)),
        ("the tuned loop, compiled", compiled),
    ]
