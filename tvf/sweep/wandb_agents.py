"""Lets W&B run a sweep: writes the YAML for `wandb sweep`, whose jobs `wandb agent` starts.

Values that an override lists become a W&B grid; all other overrides go into each job's command.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

from tvf.config import ADAPTERS, METHODS
from tvf.errors import InputError

MODELS = {method.choice for method in METHODS.values()}  # a model of the user's own can be anything
HEADS = {"transfer", "probe"}  # which train none of the groups
FRACTION, DEFAULT_FRACTIONS = "model.pct_unfreeze", ["0", "0.25", "0.5", "1.0"]
PARAMETER_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # according to W&B's schema of a sweep
HEADER = """\
# {jobs} jobs, one for each combination of the values under "parameters".
# In an environment with tvf installed, after `wandb login`:
#   wandb sweep sweep.yaml
#     registers the sweep and prints the command that starts an agent:
#   wandb agent ENTITY/{project}/ID
#     runs one job after another until none is left.
# You can start any number of agents, on any number of machines.
"""


def read_grid(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """Split overrides into fixed ones and the values of those that vary, in Hydra's spelling.

    If no override selects what trains, the default fractions vary. Raises InputError for values
    that W&B cannot vary or if nothing varies, and Hydra's errors for overrides that cannot be
    parsed.
    """
    fixed, varied = _parse(overrides)
    models = varied.get("model") or [fixed.get("model", "model=finetune").partition("=")[2]]
    groups = varied.get("model.groups") or [fixed.get("model.groups", "").partition("=")[2]]
    names_what_trains = "model.train" in {*fixed, *varied} or any(
        value not in ("", "null") for value in groups
    )
    have_fractions = {*models} <= MODELS and not {*models} <= HEADS
    if FRACTION not in {*fixed, *varied} and have_fractions and not names_what_trains:
        varied = {FRACTION: DEFAULT_FRACTIONS} | varied
    if names_what_trains and FRACTION in varied:
        raise InputError(
            f"{FRACTION} must not vary together with model.groups or model.train, which ignore it: "
            "W&B would train each of them once for each fraction. Leave one of them out."
        )
    if (heads := HEADS & {*models}) and FRACTION in varied:
        raise InputError(
            f"model={min(heads)} must not be combined with several values of {FRACTION}, which it "
            "ignores: W&B would train it once for each fraction. Leave model out: "
            f"{FRACTION}=0 trains only the head."
        )
    _check_adapters(models, varied)
    if not varied:
        raise InputError(
            f"nothing varies: list values, as in {FRACTION}={','.join(DEFAULT_FRACTIONS)} "
            "or seed=1,2,3."
        )
    return list(fixed.values()), varied


def _check_adapters(models: Sequence[str], varied: dict[str, list[str]]) -> None:
    """Raise InputError if options of adapters vary together with what ignores them."""
    options = [f"model.{key}" for key in ADAPTERS if f"model.{key}" in varied]
    without = [f"model={model}" for model in models if model in MODELS - {"lora"}]
    if {*models} <= MODELS:
        zeros = [value for value in varied.get(FRACTION, []) if _typed(value) == 0]
        without += [f"{FRACTION}={value}" for value in zeros]
    if options and without:
        raise InputError(
            f"{without[0]} must not be combined with several values of {options[0]}, which it "
            "ignores: W&B would train it once for each value. Vary them for LoRA alone, at "
            f"fractions above 0: model=lora {FRACTION}={','.join(DEFAULT_FRACTIONS[1:])}."
        )


def wandb_sweep_yaml(
    fixed: Sequence[str], varied: dict[str, list[str]], metric: str, project: str
) -> str:
    """Return the YAML of a grid from `read_grid`; runs log the score to maximise as `metric`."""
    import yaml

    sweep = {
        "program": "tvf",
        "project": project,
        "method": "grid",
        "metric": {"name": metric, "goal": "maximize"},
        "parameters": {
            key: {"values": [_typed(value) for value in values]} for key, values in varied.items()
        },
        "command": ["${env}", "${program}", "train", *fixed, "${args_no_hyphens}"],
    }
    header = HEADER.format(jobs=math.prod(map(len, varied.values())), project=project)
    return header + yaml.safe_dump(sweep, sort_keys=False, allow_unicode=True, width=10_000)


def _parse(overrides: Sequence[str]) -> tuple[dict[str, str], dict[str, list[str]]]:
    """Return overrides with one value (as given) and the values of the others, both by key."""
    from hydra.core.override_parser.overrides_parser import OverridesParser

    if options := [text for text in overrides if text.startswith("-")]:
        raise InputError(
            f"{options[0]} must be left out: W&B starts each job, and only overrides are allowed."
        )
    fixed: dict[str, str] = {}
    varied: dict[str, list[str]] = {}
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    for text, override in zip(overrides, parsed, strict=True):
        key = override.key_or_group
        if key.startswith(("hydra.", "hydra/")):
            raise InputError(
                f"{text} must be left out: W&B launches the jobs, each in its own folder."
            )
        if key in fixed or key in varied:
            raise InputError(f"{key} must be given only once, but {text} repeats it.")
        if not override.is_sweep_override():
            fixed[key] = text
        elif not override.is_discrete_sweep():
            raise InputError(f"{text} must list the values of the grid: {key}=value,value.")
        elif not PARAMETER_NAME.fullmatch(text.partition("=")[0]):
            raise InputError(
                f"{text} must have a single value: W&B only varies parameters whose names consist "
                "of letters, digits, _ . and -."
            )
        else:
            varied[key] = list(override.sweep_string_iterator())
    return fixed, varied


def _typed(value: str) -> Any:
    """Return numbers and booleans as such, for W&B's axes, and everything else unchanged.

    null stays a string because an agent would write it as None.
    """
    try:
        typed = json.loads(value)
    except ValueError:
        return value
    return typed if isinstance(typed, bool | int | float) and math.isfinite(typed) else value
