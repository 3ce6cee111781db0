"""Train one configuration, or sweep several.

python train.py -m model.pct_unfreeze=0,0.25,0.5,1.0
"""

from tvf.cli import train

if __name__ == "__main__":
    train()
