"""A sweep over all ways to train a fraction: names, scores and costs, and models that load."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tvf
from helpers import Outcome
from helpers.jobs import summary
from tvf.files import BEST_WEIGHTS
from tvf.models import FineTuneModel, efficientnet_lite0
from tvf.records import read_predictions, read_sweep, softmax
from tvf.report import compare

Shell = Callable[..., Outcome]


@pytest.mark.slow
def test_a_sweep_compares_all_models_and_each_loads_as_an_ordinary_network(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    data = ("data=image_folder", f"data.root={image_root}", "data.image_size=32")
    models = ("-m", "model=finetune,lora,bitfit,norm", "model.rank=2,4", "model.pct_unfreeze=0.5")
    outcome = shell(
        *models,
        *data,
        "epochs=1",
        "optimizer.backbone_lr=0.01",
        "tracker=none",
        "hydra.sweep.dir=sweep",
        "hydra/launcher=basic",
    )
    assert outcome.code == 0, outcome.out + outcome.err
    found = {
        p.parent.name.partition("-backbone_lr0.01")[0]: p.parent
        for p in tmp_path.glob("sweep/*/summary.json")
    }
    assert sorted(found) == [
        "bitfit-0.5",
        "fine-tuning-0.5",
        "lora-0.5-rank2",
        "lora-0.5-rank4",
        "norm-0.5",
    ]
    logs = {name: (folder / "job.log").read_text() for name, folder in found.items()}
    started = "trains adapters of rank 2 beside 17 layers in 4 of 9 groups"
    assert started in logs["lora-0.5-rank2"]
    assert "without adapter: blocks.6.0.conv_dw" in logs["lora-0.5-rank2"]
    assert "model=bitfit has no adapters; ignoring model.rank" in logs["bitfit-0.5"]
    trained = [summary(found[name])["trainable_params"] for name in sorted(found)]
    assert trained[0] < trained[4] < trained[2] < trained[3] < trained[1]
    assert len({summary(folder)["total_params"] for folder in found.values()}) == 1
    assert "0.5 with LoRA" in (tmp_path / "sweep" / "report.html").read_text()
    with (tmp_path / "sweep" / "results.csv").open() as file:
        rows = [*csv.DictReader(file)]
    kinds = {row["name"].removesuffix("-backbone_lr0.01"): row["model"] for row in rows}
    assert kinds["lora-0.5-rank2"] == "lora" and kinds["norm-0.5"] == "norm"

    (comparison,) = compare(read_sweep(tmp_path / "sweep"))
    labels = [configuration.label for configuration in comparison.configurations]
    assert labels[0] == "0.5" and "0.5 with LoRA, model.rank=2" in labels
    assert all(group.val and group.seconds for group in comparison.configurations)

    names = FineTuneModel(efficientnet_lite0(2, pretrained=False), 0.0).state_dict().keys()
    for folder in found.values():
        assert (folder / BEST_WEIGHTS).is_file()
        model, recorded = tvf.load(folder), read_predictions(folder)["val"]
        assert model.network is not None and model.network.state_dict().keys() == names
        files = [image_root / str(name) for name in recorded.names]
        probabilities = model.predict(files, raw=True).probabilities
        np.testing.assert_allclose(probabilities, softmax(recorded.logits), atol=1e-6)
