"""Advice on a small network: what it reads, what it counts, and what it must not depend on."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from helpers import SmallNet
from helpers.training import DATA, small_config, small_context, split
from tvf.advise import FRACTIONS, Advice, advise, describe_advice, tabulate_advice
from tvf.advise.depths import pool
from tvf.advise.errors import score_of_largest_class
from tvf.advise.survey import UNSTORED
from tvf.advise.trials import RUN_ERROR, take, within_margin
from tvf.config import Config
from tvf.errors import InputError
from tvf.job import open_job
from tvf.models import Backbone, group_by_modules
from tvf.report import Scores
from tvf.training import compute_scores

TRAIN, VAL = len(DATA.train), len(DATA.val)


class Branching(SmallNet):
    """Does not trace, and calls no module of its second group."""

    def forward(self, images: Tensor) -> Tensor:
        if images.mean() > 1e6:
            return self.head(images)
        hidden = self.bn1(self.conv1(images)).relu()
        hidden = nn.functional.conv2d(hidden, self.conv2.weight, self.conv2.bias, stride=2)
        return self.head(hidden.relu().mean((2, 3)))


def branching_backbone(num_classes: int) -> Backbone:
    module = Branching(num_classes)
    del module.bn2
    groups = group_by_modules(module, [["conv2"], ["bn1"], ["conv1"]])
    return Backbone("branching", module, "head", groups)


def _refuse_probes(config: Config, *how: Any) -> Any:
    """Open a job, unless it is the probe, as if the network could not be traced."""
    if not config["model"]:
        raise InputError("it cannot be traced")
    return open_job(config, *how)


def _without_times(advice: Advice) -> Advice:
    return replace(
        advice,
        seconds={},
        fractions=[replace(each, seconds=0.0) for each in advice.fractions],
    )


@pytest.fixture(scope="module")
def advice(tmp_path_factory: pytest.TempPathFactory) -> Advice:
    config = small_config(store__mode="off")
    return advise(config, small_context(tmp_path_factory.mktemp("job")))


def test_every_signal_is_there(advice: Advice) -> None:
    assert [each.name for each in advice.depths][-1] == "input of the head"
    assert all(0 <= each.probe <= 1 and 0 <= each.neighbours <= 1 for each in advice.depths)
    assert advice.depths[-1].width == 8 and advice.all_depths is not None
    assert all(value > 0 for value in advice.gradients.values())
    chances = [each.probability for each in advice.fractions]
    assert chances == sorted(chances, reverse=True) and max(chances) < 1
    assert {each.fraction for each in advice.fractions} <= {*FRACTIONS}
    assert len({each.groups for each in advice.fractions}) == len(advice.fractions)


def test_scores_have_the_errors_of_their_images(advice: Advice) -> None:
    for score, error in [(each.probe, each.error) for each in advice.depths] + [
        (each.score, each.error) for each in advice.fractions
    ]:
        binomial = (score * (1 - score) / VAL) ** 0.5  # no groups, one prediction of each image
        assert error == pytest.approx(binomial, rel=0.15)
    assert advice.depths[-1].error_to_end == 0 == advice.fractions[0].error_to_first


def test_a_difference_within_its_error_is_none(advice: Advice) -> None:
    end = replace(advice.depths[-1], probe=0.5)
    for error, said in ((0.01, "beats that at the end"), (0.2, "No depth beats the end")):
        better = replace(end, name="early", probe=0.6, error_to_end=error)
        assert said in describe_advice(replace(advice, depths=[better, end]), "tvf train")


@pytest.mark.parametrize(("metric", "score"), [("accuracy", 0.75), ("auroc", 0.5)])
def test_the_baseline_is_the_score_without_skill(metric: str, score: float) -> None:
    labels = torch.tensor([0, 0, 0, 1])
    assert score_of_largest_class(labels, metric) == score
    found = compute_scores(torch.tensor([[1.0, 0.0]] * 4), labels, 0.0, 0.75)
    assert score_of_largest_class(labels, "macro_f1") == pytest.approx(found.macro_f1)


def test_images_through_the_network_are_counted(advice: Advice) -> None:
    runs = len(advice.fractions)
    assert advice.forward == TRAIN + VAL + runs * VAL
    assert advice.trained == TRAIN + runs * TRAIN  # few images: gradients and runs take all


def test_outputs_that_the_store_has_are_not_computed_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small_config(store__mode="on", store__dir=str(tmp_path / "store"))
    first = advise(config, small_context(tmp_path))
    again = advise(config, small_context(tmp_path))
    same = replace(_without_times(again), forward=first.forward, notes=first.notes)
    assert same == _without_times(first) and not first.notes
    assert again.notes == [f"The store had the groups' outputs of {TRAIN + VAL} images."]
    assert again.forward == first.forward - TRAIN - VAL
    monkeypatch.setattr("tvf.advise.survey.read_depths", lambda _: pytest.fail("it is asked"))
    monkeypatch.setattr("tvf.advise.survey._as_probe", lambda _: {**config, "model": {}})
    monkeypatch.setattr("tvf.advise.survey.open_job", _refuse_probes)
    by_hooks = advise(config, small_context(tmp_path))
    hooked = {each.name: each for each in by_hooks.depths}  # with the last group's own output
    assert [each.name for each in first.depths] == [name for name in hooked if name != "bn2"]
    for each in first.depths:
        assert each.width == hooked[each.name].width
        assert abs(each.probe - hooked[each.name].probe) <= 1 / VAL


def test_the_test_images_have_no_part(
    advice: Advice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.training.DATA", replace(DATA, test=split(20, 3)))
    again = advise(small_config(), small_context(tmp_path))
    assert _without_times(again) == _without_times(advice)


def test_words_and_numbers_agree(advice: Advice) -> None:
    text = describe_advice(advice, "tvf train")
    numbers = tabulate_advice(advice, "tvf train")
    assert text.endswith("tvf train") and numbers["command"] == "tvf train"
    assert numbers["total_seconds"] == pytest.approx(sum(advice.seconds.values()))
    for each in advice.fractions:
        assert f"{each.probability:.0%}" in text
    assert f"{advice.forward:,} images forward" in text
    assert (
        f"always predicting the largest class of these images has accuracy {advice.baseline:.3f}"
        in text
    )
    assert numbers["promising"] == advice.promising == sorted(advice.promising)


def test_a_probe_is_suggested_where_all_depths_together_score_highest(advice: Advice) -> None:
    said = "It is what model=probe trains"
    leads, behind = replace(advice, all_depths=1.1), replace(advice, all_depths=0.1)
    assert leads.probe_leads and said in describe_advice(leads, "")
    assert not behind.probe_leads and said not in describe_advice(behind, "")
    assert not replace(leads, notes=[f"{UNSTORED}: it cannot be traced"]).probe_leads


def test_a_run_as_long_as_a_job_is_called_so(advice: Advice) -> None:
    short = replace(advice, splits={**advice.splits, "run": 8, "job": 9})
    assert "the start of an ordinary job" in describe_advice(short, "")
    whole = describe_advice(replace(advice, splits={**advice.splits, "run": 9, "job": 9}), "")
    assert "3. A run of each fraction, as long as a whole job, on the same 9" in whole
    assert "start of an ordinary job" not in whole


def test_a_network_that_does_not_trace_is_read_where_it_calls_modules(tmp_path: Path) -> None:
    config = small_config(backbone___target_="advise.test_advice.branching_backbone")
    found = advise(config, small_context(tmp_path))
    assert [each.name for each in found.depths] == ["conv1", "bn1", "input of the head"]
    assert "not kept in the store: model=probe needs a network that torch.fx" in found.notes[0]
    assert len(found.fractions) == len(FRACTIONS)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"model__groups": ["conv2"]}, "model.groups=['conv2'] names what trains"),
        ({"refit_epochs": [1]}, "refit_epochs must be null"),
        ({"model": {"_target_": "tvf.models.TransferModel"}}, "model=transfer trains none"),
    ],
)
def test_what_has_no_fraction_to_advise_on_is_an_error(
    tmp_path: Path, changes: dict[str, object], said: str
) -> None:
    config = small_config()
    for key, value in changes.items():
        node, _, name = key.rpartition("__")
        (config[node] if node else config)[name] = value
    with pytest.raises(InputError) as error:
        advise(config, small_context(tmp_path))
    assert said in str(error.value)


def test_without_validation_images_nothing_can_be_judged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("helpers.training.DATA", replace(DATA, val=take(DATA.val, 0)))
    with pytest.raises(InputError, match="no validation images"):
        advise(small_config(), small_context(tmp_path))


def test_two_equal_runs_are_as_probable_as_the_error_of_a_run_says() -> None:
    same = np.eye(2) * RUN_ERROR**2
    scores = Scores(np.array([0.8, 0.8]), same, 1e6, same, 1e6, 1, "image")
    # P(normal(0, RUN_ERROR √2) < 0.01) for each of the two.
    assert within_margin(scores, 0.01) == pytest.approx((0.556, 0.556), abs=0.02)
    far = Scores(np.array([0.8, 0.2]), same, 1e6, same, 1e6, 1, "image")
    assert within_margin(far, 0.01) == pytest.approx((1, 0), abs=1e-3)


def test_fewer_images_are_a_part_of_more() -> None:
    few, more = take(DATA.train, 10), take(DATA.train, 20)
    assert len(few) == 10 and {*few.places} < {*more.places}
    assert take(DATA.train, 1000) is DATA.train


@pytest.mark.parametrize(
    ("shape", "width"), [((2, 5, 3, 3), 5), ((2, 3, 3, 5), 5), ((2, 7, 5), 5), ((2, 5), 5)]
)
def test_maps_tokens_and_vectors_are_pooled(shape: tuple[int, ...], width: int) -> None:
    pooled = pool((torch.ones(shape), None))
    assert pooled is not None and pooled.tolist() == [[1.0] * width] * 2
    assert pool("no tensor") is None
