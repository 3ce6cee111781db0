"""What a job that has trained is worth: its scores, its predictions, and its summary."""

from collections.abc import Callable
from dataclasses import replace
from statistics import median
from typing import Any

from tvf.distributed import (
    describe_machine,
    library_versions,
    peak_device_memory_mb,
    peak_memory_mb,
    source_commit,
)
from tvf.job.setup import Job
from tvf.models import count_parameters
from tvf.records import JobRecord, Predictions, Run, calibrate, predictions_of
from tvf.training import TrainingLoop, compute_scores, predict


def score_job(
    job: Job, loop: TrainingLoop, load_best: Callable[[int], None]
) -> tuple[dict[str, Any], dict[str, Predictions]]:
    """Score validation and test with the best epoch's weights: the only use of the test images.

    `load_best` gives the model the weights of that epoch. Returns the scores for the summary, and
    the predictions for each split. A job that trained on the validation images scores neither: its
    score is that of the sweep that it repeats.
    """
    best, training = loop.best, job.costs.total()
    assert best is not None, "a job has at least one epoch"
    phases = job.phases
    phases.fabric.barrier()  # rank 0 has written the weights
    phases.release_graphs()
    load_best(best.epoch)
    pipeline, scores = phases.pipeline_of(best.phase - 1), {}
    predictions = {}
    scored = {"val": phases.data.val, "test": phases.data.test} if len(phases.data.val) else {}
    # Validation runs again: epochs record neither predictions nor scores by class.
    for name, split in scored.items():
        inputs, size = pipeline.evaluate(name), job.steps.batch_size
        logits, loss, acc = predict(phases.fabric, inputs, split.labels, size)
        scores |= compute_scores(logits, split.labels, loss, acc).named(name)
        predictions[name] = predictions_of(split, logits.numpy())
    by_split = {name: (each.logits, each.labels) for name, each in predictions.items()}
    if scored and loop.predicted is not None:
        classes = loop.predicted.numpy()
        predictions["val"] = replace(predictions["val"], epoch_classes=classes)
    total = job.costs.total()
    scores = {
        "metric": job.loop.metric,
        "best_epoch": best.epoch,
        "best_phase": best.phase,
        **scores,
        **({"calibration": calibrate(by_split)} if scored else {}),
        **total,
        "train_seconds": training["train_seconds"],
        "prefix_seconds": training["prefix_seconds"],
        "prefix_kept": phases.prefix_kept,
        "test_seconds": total["train_seconds"] - training["train_seconds"],
        "approximations": phases.approximations,
    }
    return scores, predictions


def summarise(job: Job, record: JobRecord, run: Run, scores: dict[str, Any]) -> dict[str, Any]:
    """The content of summary.json, given the scores and costs of `score_job`."""
    model, device = job.phases.model, job.phases.fabric.device
    model.unfreeze()
    return {
        "name": job.name,
        **job.facts,
        "classes": list(job.phases.data.classes),
        "unfrozen_groups": [group.name for group in model.trained_groups],
        "trainable_params": count_parameters(p for p in model.parameters() if p.requires_grad),
        "total_params": count_parameters(model.module.parameters()),
        "epochs": job.epochs,
        **scores,
        "images_per_second": median(epoch["images_per_second"] for epoch in record.metrics),
        "peak_memory_mb": peak_memory_mb(device),
        "peak_device_memory_mb": peak_device_memory_mb(device),
        "cuda_graphs": job.phases.used_graphs if device.type == "cuda" else None,
        "wandb_run_id": run.id,
        "wandb_url": run.url,
        "versions": library_versions(),
        "commit": source_commit(),
        "machine": describe_machine(device),
    }
