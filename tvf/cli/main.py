"""The shell's side: finds conf/, hands over to Hydra, and turns mistakes into messages instead of tracebacks."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    pass
from tvf.cli.train import train

OTHERS = ("resume", "status", "report", "dashboard", "wandb-sweep", "groups", "store")
USAGE = """tvf: how much of a pretrained vision network should train?

  tvf train [OVERRIDE ...]       train one configuration
  tvf train -m [OVERRIDE ...]    sweep: model.pct_unfreeze=0,0.25,0.5,1.0 trains four
  tvf train --help               the options, and the config as it stands
  tvf resume DIR                 go on with the sweep in DIR: what is done is kept, what was stopped goes on from there
                                 (hydra/launcher=basic and the like may follow)
  tvf status DIR                 how the jobs of the sweep in DIR stand
  tvf report DIR [DIR ...]       compare the jobs of one or more sweeps: report.html, written at a sweep's end too
                                 (--format md, csv, json or png; --output FOLDER, or - for the terminal)
  tvf dashboard DIR              the comparison at W&B: a workspace and a report of the sweep's runs
  tvf wandb-sweep [OVERRIDE ...] print the YAML of the same sweep for `wandb sweep` and its agents: > sweep.yaml
  tvf groups [OVERRIDE ...]      what each fraction trains: tvf groups backbone=resnet18 backbone.weights=null
  tvf store info | clear         what frozen layers computed, kept for later jobs; clear what no job uses now
                                 (store.dir=DIR for another store than TVF_STORE's, or the user's cache folder)
"""


def main() -> None:
    """The command `tvf`."""
    command, *rest = sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help") or (command in OTHERS and {"-h", "--help"} & {*rest}):
        print(USAGE)
    elif command == "train":
        sys.argv = [f"{sys.argv[0]} train", *rest]
        train()
    elif command in OTHERS:
        from tvf.cli import commands

        getattr(commands, command.replace("-", "_"))(rest)
    else:
        raise SystemExit(f"error: {command} is not a command of tvf.\n\n{USAGE}")
