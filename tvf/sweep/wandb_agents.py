"""A sweep in W&B's hands: the YAML that `wandb sweep` registers, and by which `wandb agent` runs its jobs.

Values that an override lists become a grid of W&B's; every other override stands in each job's command.
"""

import json
import math
import re
from collections.abc import Sequence
from typing import Any

import yaml
from hydra.core.override_parser.overrides_parser import OverridesParser

from tvf.errors import InputError

FRACTION, FRACTIONS = "model.pct_unfreeze", ["0", "0.25", "0.5", "1.0"]
NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.-]*")  # of a parameter, by W&B's schema of a sweep
HEADER = """\
# {jobs} jobs, one for each combination of the values under "parameters".
# In an environment that tvf is installed in, after `wandb login`:
#   wandb sweep sweep.yaml
#     registers the sweep, and prints the command that starts an agent:
#   wandb agent ENTITY/{project}/ID
#     runs one job after another until none is left. Start as many agents as you like, on as many machines.
"""


def read_grid(overrides: Sequence[str]) -> tuple[list[str], dict[str, list[str]]]:
    """The overrides that are fixed, and the values of those that vary, spelled for Hydra; the fractions if none does.

    Raises InputError for what W&B cannot vary, or if nothing varies, and Hydra's errors for what cannot be read.
    """
    if options := [each for each in overrides if each.startswith("-")]:
        raise InputError(
            f"{options[0]} is refused: W&B starts each job by itself, and takes overrides alone."
        )
    fixed: dict[str, str] = {}
    varied: dict[str, list[str]] = {}
    for text, override in zip(
        overrides, OverridesParser.create().parse_overrides(list(overrides)), strict=True
    ):
        key = override.key_or_group
        if key.startswith("hydra."):
            raise InputError(
                f"{text} is refused: each job has a folder of its own, and W&B launches them."
            )
        if key in fixed or key in varied:
            raise InputError(f"{text} is refused: {key} is given twice.")
        if not override.is_sweep_override():
            fixed[key] = text
        elif not override.is_discrete_sweep():
            raise InputError(f"{text} is refused: a grid needs values: {key}=value,value.")
        elif not NAME.fullmatch(text.partition("=")[0]):
            raise InputError(
                f"{text} is refused: W&B varies what letters, digits, _ . and - name; fix one value."
            )
        else:
            varied[key] = list(override.sweep_string_iterator())
    models = varied.get("model") or [fixed.get("model", "model=finetune").partition("=")[2]]
    directions = varied.get("model.direction") or [fixed.get("model.direction", "")]
    named = "model.train" in {*fixed, *varied} or any(
        "block" in direction for direction in directions
    )
    if FRACTION not in {*fixed, *varied} and "finetune" in models and not named:
        varied = {FRACTION: FRACTIONS} | varied
    if named and FRACTION in varied:
        raise InputError(
            f"{FRACTION} is refused beside model.train or model.direction=block:...: W&B would train each of these "
            "once for each fraction, which they ignore."
        )
    if "transfer" in models and FRACTION in varied:
        raise InputError(
            f"model=transfer is refused: W&B would train it once for each {FRACTION}, which it ignores. Leave model "
            f"out: {FRACTION}=0 trains the head alone."
        )
    if not varied:
        raise InputError(
            f"nothing varies: list values, as in {FRACTION}={','.join(FRACTIONS)} or seed=1,2,3."
        )
    return list(fixed.values()), varied


def wandb_sweep_yaml(
    fixed: Sequence[str], varied: dict[str, list[str]], metric: str, project: str
) -> str:
    """The YAML of a grid that `read_grid` gave; `metric` is what runs call the score to maximise."""
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


def _typed(value: str) -> Any:
    """Numbers and truth values as such, for W&B's axes; the rest as it was spelled: an agent writes null as None."""
    try:
        typed = json.loads(value)
    except ValueError:
        return value
    return typed if isinstance(typed, bool | int | float) and math.isfinite(typed) else value
