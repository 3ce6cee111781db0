"""`tvf advise`: which fractions are promising, from a job's overrides."""

import json
import shlex
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tvf.advise import Advice, advise, describe_advice, tabulate_advice
from tvf.cli.launch import compose
from tvf.config import Config, method_of, validate_config
from tvf.errors import InputError
from tvf.job import JobContext

FRACTION, FOLDS, FOLD = "model.pct_unfreeze", "data.folds", "data.fold"
SWEEPER = "hydra/sweeper"
DEFAULT_FOLDS = 5


def run_advise(overrides: Sequence[str], config_dir: Path | None, as_json: bool) -> str:
    """Collect the evidence; the text to print."""
    _check_overrides(overrides)
    config = validate_config(compose(overrides, config_dir))
    choices = {
        "model": method_of(config["model"]).choice,
        "backbone": str(config["backbone"].get("name", "")),
        "data": "",
    }
    with tempfile.TemporaryDirectory(prefix="tvf-advise-") as folder:
        context = JobContext(Path(folder), sweep=None, parallel=as_json, choices=choices)
        advice = advise(config, context)
    command = _command(overrides, config, config_dir, advice)
    if as_json:
        return json.dumps(tabulate_advice(advice, command), indent=2)
    return describe_advice(advice, command)


def _check_overrides(overrides: Sequence[str]) -> None:
    """Raise InputError for flags, lists of values, and the fraction, which advise varies itself."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if flags := [text for text in overrides if text.startswith("-")]:
        raise InputError(
            f"{flags[0]} must be left out: tvf advise takes the overrides of one job, and tries "
            "several fractions by itself."
        )
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for text, override in zip(overrides, parsed, strict=True):
        if override.key_or_group == FRACTION:
            raise InputError(
                f"{text} must be left out: tvf advise tries several fractions by itself."
            )
        if override.is_sweep_override():
            raise InputError(
                f"{text} must have a single value: tvf advise takes the overrides of one job."
            )


def _command(
    overrides: Sequence[str], config: Config, config_dir: Path | None, advice: Advice
) -> str:
    """The sweep that would settle which of the promising fractions is best, on folds.

    It has a probe beside them if that may do better, and trains with the model's other options.
    """
    folds = config["data"].get("folds") or DEFAULT_FOLDS
    words = ["tvf", "train", "-m", f"{SWEEPER}=race"]
    words += ["--config-dir", str(config_dir)] if config_dir else []
    words += [f"{FRACTION}={','.join(f'{fraction:g}' for fraction in advice.promising)}"]
    left_out = [FOLDS, FOLD, SWEEPER]
    if advice.probe_leads and config["model"].get("frozen_bn") != "batch":  # an error with a probe
        given = [text for text in overrides if text.startswith("model=")]
        chosen = given[-1] if given else f"model={method_of(config['model']).choice}"
        words.append(f"{chosen},probe")
        left_out.append("model")
    words += [f"{FOLDS}={folds}", f"{FOLD}={','.join(map(str, range(folds)))}"]
    words += [text for text in overrides if text.partition("=")[0] not in left_out]
    return shlex.join(words)
