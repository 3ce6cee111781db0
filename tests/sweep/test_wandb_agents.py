"""The YAML for `wandb sweep`, expanded by the code of W&B's agent and run as the agent runs it."""

import json
import re
import sys
from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import yaml
from wandb import wandb_agent

from helpers import Outcome
from tvf import cli
from tvf.errors import InputError
from tvf.sweep.wandb_agents import read_grid, wandb_sweep_yaml

QUICK = ("epochs=1", "data.limit=32", "data.batch_size=4", "data.image_size=32")


@pytest.fixture
def expand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[[str], list[list[str]]]:
    """`expand(text)`: the commands that an agent starts for the sweep, one per job."""
    started: list[list[str]] = []

    class Process:
        def __init__(self, command: list[str], **others: Any) -> None:
            started.append(command)

    monkeypatch.setattr(wandb_agent, "AgentProcess", Process)

    def run(text: str) -> list[list[str]]:
        with monkeypatch.context() as patch:
            for variable in (
                "WANDB_DIR",
                "WANDB_SWEEP_ID",
                "WANDB_RUN_ID",
                "WANDB_SWEEP_PARAM_PATH",
            ):  # set by the agent
                patch.setenv(variable, str(tmp_path))
            return agents_commands(text)

    def agents_commands(text: str) -> list[list[str]]:
        config = yaml.safe_load(text)
        agent = wandb_agent.Agent(api=None, queue=None, sweep_id="abc")
        agent._sweep_command = config["command"]
        parameters = config["parameters"]
        for number, values in enumerate(product(*(node["values"] for node in parameters.values()))):
            args = {
                key: {"value": as_sent(value)}
                for key, value in zip(parameters, values, strict=True)
            }
            agent._command_run(
                {"run_id": f"run{number}", "program": config["program"], "args": args}
            )
        return started

    return run


@pytest.fixture
def describe(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[str]], str]:
    """`describe(["seed=1,2"])`: what `tvf wandb-sweep seed=1,2` prints."""

    def run(overrides: list[str]) -> str:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["tvf", "wandb-sweep", *overrides])
        cli.main()
        return capsys.readouterr().out

    return run


Expand = Callable[[str], list[list[str]]]
Describe = Callable[[list[str]], str]


def as_sent(value: Any) -> Any:
    """Values as W&B's service returns them: JSON, with whole floats as integers."""
    value = json.loads(json.dumps(value))
    return int(value) if isinstance(value, float) and value.is_integer() else value


def test_without_overrides_the_default_fractions_vary(expand: Expand, describe: Describe) -> None:
    text = describe([])
    config = yaml.safe_load(text)
    assert (config["method"], config["metric"]) == ("grid", {"name": "val_acc", "goal": "maximize"})
    assert expand(text) == [
        ["/usr/bin/env", "tvf", "train", f"model.pct_unfreeze={pct}"]
        for pct in ("0", "0.25", "0.5", "1")
    ]


def test_listed_values_vary_and_other_overrides_are_in_each_command(
    expand: Expand, describe: Describe
) -> None:
    text = describe(
        ["seed=1,2,3", "epochs=2", "model.pct_unfreeze=0,0.5", "+optimizer.algorithm.amsgrad=true"]
    )
    assert expand(text) == [
        [
            "/usr/bin/env",
            "tvf",
            "train",
            "epochs=2",
            "+optimizer.algorithm.amsgrad=true",
            f"seed={seed}",
            fraction,
        ]
        for seed in (1, 2, 3)
        for fraction in ("model.pct_unfreeze=0", "model.pct_unfreeze=0.5")
    ]


@pytest.mark.slow
def test_a_job_of_the_sweep_runs_as_the_agent_starts_it(
    expand: Expand, describe: Describe, shell: Callable[..., Outcome], tmp_path: Path
) -> None:
    _, second = expand(describe(["seed=1,2", "model.pct_unfreeze=0.25", *QUICK]))
    outcome = shell(*second[3:], "hydra.run.dir=job", "tracker=none")
    assert outcome.code == 0, outcome.err
    summary = json.loads((tmp_path / "job" / "summary.json").read_text())
    assert (summary["seed"], summary["pct_unfreeze"]) == (2, 0.25)
    assert (summary["epochs"], summary["name"]) == (1, "fine-tuning-0.25-seed2")


# Overrides as given in the shell, and the values in the jobs' configs: spellings that an agent,
# YAML or JSON could change. Those of a line are one grid, of which the first and last job run.
@pytest.mark.parametrize(
    "overrides",
    [
        {
            "threads=null,2": [None, 2],
            "optimizer.lr=1e-5,0.1": [1e-5, 0.1],
            "channels_last=true,False": [True, False],
            "project='a, b',c": ["a, b", "c"],
            "tracker.tags=[a,b],[c]": [["a", "b"], ["c"]],
        },
        {'project="a b","it\'s"': ["a b", "it's"]},
        {"project=yes,on": ["yes", "on"]},
        {r"project=a\,b,c": ["a,b", "c"]},
        {"tracker.entity=${project},x${seed}": ["tvf", "x1337"]},
    ],
    ids=" ".join,
)
def test_values_reach_the_job_unchanged(
    expand: Expand,
    describe: Describe,
    shell: Callable[..., Outcome],
    overrides: dict[str, list[Any]],
) -> None:
    commands = expand(describe([*overrides, "model.pct_unfreeze=0.5"]))
    assert len(commands) == 2 ** len(overrides)
    got: dict[str, list[Any]] = {override: [] for override in overrides}
    for command in (commands[0], commands[-1]):
        outcome = shell(*command[3:], "--cfg", "job", "--resolve")
        assert outcome.code == 0, outcome.err
        config = yaml.safe_load(outcome.out)
        for override in overrides:
            node = config
            for key in override.partition("=")[0].split("."):
                node = node[key]
            got[override].append(node)
    assert got == overrides


def test_listed_groups_vary_instead_of_fractions(expand: Expand) -> None:
    fixed, varied = read_grid(["model.groups=[layer3],[layer3,layer4]", "seed=1"])
    assert (fixed, varied) == (["seed=1"], {"model.groups": ["[layer3]", "[layer3,layer4]"]})
    assert [command[3:] for command in expand(wandb_sweep_yaml(fixed, varied, "val_acc", "p"))] == [
        ["seed=1", "model.groups=[layer3]"],
        ["seed=1", "model.groups=[layer3,layer4]"],
    ]


def test_null_groups_leave_the_fractions_to_vary() -> None:
    _, varied = read_grid(["model.groups=null"])
    assert varied == {"model.pct_unfreeze": ["0", "0.25", "0.5", "1.0"]}


def test_the_header_gives_the_commands_and_the_number_of_jobs(describe: Describe) -> None:
    text = describe(["seed=1,2,3", "project=mine"])
    head = [line for line in text.splitlines() if line.startswith("#")]
    assert text.startswith("# 12 jobs")
    for command in ("wandb login", "wandb sweep sweep.yaml", "wandb agent ENTITY/mine/ID"):
        assert command in "\n".join(head)
    assert yaml.safe_load(text)["project"] == "mine"


def test_the_metric_to_maximise_is_that_of_the_data(describe: Describe) -> None:
    assert yaml.safe_load(describe(["data.metric=auroc"]))["metric"]["name"] == "val_auroc"


@pytest.mark.parametrize(
    ("model", "varied"), [("finetune", True), ("transfer", False), ("probe", False)]
)
def test_fractions_only_vary_for_a_model_that_has_them(
    describe: Describe, model: str, varied: bool
) -> None:
    parameters = yaml.safe_load(describe([f"model={model}", "seed=1,2"]))["parameters"]
    assert ("model.pct_unfreeze" in parameters) == varied


def test_a_model_of_the_users_own_has_no_default_fractions() -> None:
    assert read_grid(["model=own", "seed=1,2"]) == (["model=own"], {"seed": ["1", "2"]})
    assert "model.pct_unfreeze" not in read_grid(["model=own,lora"])[1]
    assert "model.pct_unfreeze" in read_grid(["model=norm,lora"])[1]


@pytest.mark.parametrize("model", ["lora", "own", "own,lora"])
def test_options_of_adapters_vary_for_models_that_may_have_them(model: str) -> None:
    _, varied = read_grid([f"model={model}", "model.pct_unfreeze=0.5,1", "model.rank=4,8"])
    assert varied["model.rank"] == ["4", "8"]


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["model=finetune,lora", "model.pct_unfreeze=0.5"], "model=finetune must not be combined"),
        (["model=own,norm"], "model=norm must not be combined with several values of model.rank"),
        (["model.pct_unfreeze=0.5"], "Vary them for LoRA alone, at fractions above 0: model=lora"),
        (["model=lora"], "model.pct_unfreeze=0 must not be combined"),
        (["model=lora", "model.pct_unfreeze=0.0,1"], "model.pct_unfreeze=0.0 must not be combined"),
    ],
)
def test_options_of_adapters_do_not_vary_for_what_ignores_them(
    overrides: list[str], told: str
) -> None:
    with pytest.raises(InputError, match=re.escape(told)):
        read_grid([*overrides, "model.rank=4,8"])


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["seed"], "cannot parse seed "),
        (["seed=1,,2"], "cannot parse seed=1,,2 "),
        (["tracker.tags=[a,b"], "cannot parse tracker.tags=[a,b "),
        (["seed=interval(1,4)"], "seed=value,value"),
        (["seed=1", "seed=2"], "seed must be given only once"),
        (["seed=1,2", "seed=3"], "seed must be given only once"),
        (["-m", "seed=1,2"], "-m must be left out"),
        (["+experiment=smoke,cifar10"], "+experiment=smoke,cifar10 must have a single value"),
        (["hydra/launcher=local,basic"], "hydra/launcher=local,basic must be left out"),
        (["model.pct_unfreeze=0.5"], "nothing varies"),
        (["model=transfer"], "nothing varies"),
        (["model=transfer,finetune"], "model=transfer must not be combined"),
        (
            ["model=transfer", "model.pct_unfreeze=0.5,1"],
            "model.pct_unfreeze=0 trains only the head",
        ),
        (["model.pct_unfreeze=0,25"], "did you mean 0.25?"),
        (
            ["model.groups=null,[layer3]", "model.pct_unfreeze=0,1"],
            "model.pct_unfreeze must not vary together with model.groups or model.train",
        ),
        (["model.train=a,b", "model.pct_unfreeze=0,1"], "once for each fraction"),
        (["model.groups=[layer3]"], "nothing varies"),
        (["seed=1,-1"], "seed=-1 must be a whole number"),
        (["epochs=0"], "epochs=0 must be a whole number"),
        (["typo=1"], "typo"),
        (["tracker=none"], "tracker=none must be tracker=wandb: the sweep maximizes"),
        (
            ["hydra.run.dir=x", "seed=1,2"],
            "hydra.run.dir=x must be left out: W&B launches the jobs, each in its own folder",
        ),
    ],
)
def test_an_error_says_why_the_overrides_are_not_a_sweep(
    describe: Describe, overrides: list[str], told: str
) -> None:
    with pytest.raises(SystemExit, match=re.escape(told)):
        describe(overrides)
