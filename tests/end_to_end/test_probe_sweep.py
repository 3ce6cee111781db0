"""A sweep of a probe and transfer learning: one table, and a model that predicts and exports."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import tvf
from helpers import Outcome
from helpers.jobs import summary
from tvf.inference import export_model
from tvf.records import read_predictions, read_sweep, softmax
from tvf.report import compare

Shell = Callable[..., Outcome]


@pytest.mark.slow
def test_a_probe_stands_beside_transfer_learning_and_its_model_predicts(
    shell: Shell, image_root: Path, tmp_path: Path
) -> None:
    outcome = shell(
        *("-m", "model=probe,transfer", "model.pct_unfreeze=0,0.5"),
        *("data=image_folder", f"data.root={image_root}", "data.image_size=32", "epochs=1"),
        *("tracker=none", "hydra.sweep.dir=sweep", "hydra/launcher=basic"),
    )
    assert outcome.code == 0, outcome.out + outcome.err
    folders = {
        p.parent.name.rpartition("-")[0]: p.parent for p in tmp_path.glob("sweep/*/summary.json")
    }
    assert sorted(folders) == ["probe", "transfer-learning"]
    log = (folders["probe"] / "job.log").read_text()
    assert (
        "the head starts from ridge regression on" in log
        and "model=probe trains only the head" in log
    )
    (comparison,) = compare(read_sweep(tmp_path / "sweep"))
    labels = [configuration.label for configuration in comparison.configurations]
    assert sorted(labels) == ["0", "0 with a probe of all depths"]

    model, recorded = tvf.load(folders["probe"]), read_predictions(folders["probe"])["val"]
    files = [image_root / str(name) for name in recorded.names]
    probabilities = model.predict(files, raw=True).probabilities
    np.testing.assert_allclose(probabilities, softmax(recorded.logits), atol=1e-6)
    assert summary(folders["probe"])["total_params"] > 2096
    exported = export_model(model, "torch_export", tmp_path / "model.pt2")
    assert exported.difference < 1e-4
