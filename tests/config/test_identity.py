"""What each option affects: every option of every YAML, and what is read off the table."""

import json
from pathlib import Path
from typing import Any

import pytest

from helpers import ROOT
from helpers.configs import overrides_of, plain_config
from tvf.config.identity import (
    NOTHING,
    OPTIONS,
    Affects,
    affects,
    earlier_options,
    frozen_layers_config,
    head_phase_config,
    result_config,
    select_options,
)
from tvf.config.legacy import LEGACY_TARGETS, flatten, modern_options
from tvf.config.selection import selection_name

CONF = ROOT / "conf"
CHOICES = sorted(path.relative_to(CONF) for path in CONF.glob("*/*.yaml"))


@pytest.mark.parametrize("choice", CHOICES, ids=str)
def test_every_option_of_every_yaml_is_in_the_table(choice: Path) -> None:
    keys = flatten(plain_config(*overrides_of(choice.parent.name, choice.stem)))
    missing = sorted(key for key in keys if key not in OPTIONS)
    assert not missing, f"add to OPTIONS in tvf/config/identity.py: {', '.join(missing)}"


def test_an_unknown_option_affects_everything_that_its_node_affects() -> None:
    assert affects("optimizer.algorithm.betas") == Affects.NUMBERS | Affects.HEAD_PHASE
    assert affects("data.sensor") == affects("data._target_")
    assert Affects.VALIDATION_IMAGES not in affects("backbone.width")
    assert affects("tracker.note") == NOTHING
    assert affects("new_option") == affects("data._target_") != NOTHING


def test_results_do_not_depend_on_who_hears_of_them_or_where_the_store_is() -> None:
    plain = result_config(plain_config("seed=1"))
    unheard = (
        "name=x",
        "project=x",
        "tracker=none",
        "stop_after=1",
        "store.dir=x",
        "store.mode=off",
        "store.max_gb=1",
        "checkpoint.every_minutes=1",
        "fabric.resident=off",
        "fabric.compile=off",
        "fabric.jobs_per_gpu=2",
    )
    assert result_config(plain_config("seed=1", *unheard)) == plain
    changes = ("epochs=9", "data.limit=9", "store.dtype=float16", "model.groups=[a]")
    for override in (*changes, "fabric.tf32=true", "deterministic=true"):
        assert result_config(plain_config("seed=1", override)) != plain, override


def test_batch_size_changes_frozen_layers_only_where_their_statistics_are_recalibrated() -> None:
    def shared(*overrides: str) -> dict[str, Any]:
        return frozen_layers_config(plain_config(*overrides))

    assert shared() == shared("data.batch_size=9") == shared("model.pct_unfreeze=1", "seed=3")
    assert shared() != shared("data.image_size=64")
    recalibrated = "model.frozen_bn=recalibrate"
    assert shared(recalibrated) != shared(recalibrated, "data.batch_size=9")


def test_scores_are_compared_on_the_same_images_and_metric() -> None:
    def judged(*overrides: str) -> dict[str, Any]:
        return select_options(plain_config(*overrides), Affects.VALIDATION_IMAGES)

    assert judged() == judged("data.batch_size=9", "data.image_size=64")
    for override in ("data.limit=9", "data.split_seed=2", "data.metric=macro_f1"):
        assert judged(override) != judged(), override


def test_a_head_phase_does_not_depend_on_what_trains_later() -> None:
    plain = head_phase_config(plain_config())
    later = ("model.pct_unfreeze=1", "optimizer.backbone_lr=1", "epochs=9", "recipe=lp_ft")
    assert head_phase_config(plain_config(*later)) == plain
    assert head_phase_config(plain_config("optimizer.lr=1")) != plain


def test_configs_from_before_the_modules_moved_equal_those_of_today() -> None:
    today = plain_config("model.pct_unfreeze=null", "model.groups=[layer3]")
    former = {target: old for old, target in LEGACY_TARGETS.items()}

    def age(node: Any) -> Any:
        if not isinstance(node, dict):
            return node
        aged = {key: age(value) for key, value in node.items()}
        if "_target_" in aged:
            aged["_target_"] = former.get(aged["_target_"], aged["_target_"])
        return aged

    old = age(today)
    assert old["optimizer"]["_target_"] == "tvf.optim.TwoRates"
    del old["model"]["groups"]
    for direction in ("block:layer3", "block=layer3"):
        old["model"]["direction"] = direction
        assert selection_name(old["model"]) == "groups-layer3"
        assert modern_options(old) == flatten(today)
        assert result_config(old) == result_config(today)


def test_a_config_older_than_an_option_keeps_the_behaviour_of_its_time() -> None:
    today = plain_config()
    old = {key: value for key, value in today.items() if key not in ("recipe", "mix", "average")}
    old["data"] = {key: value for key, value in today["data"].items() if key != "metric"}
    old["optimizer"] = {k: v for k, v in today["optimizer"].items() if k != "clip_norm"}
    assert result_config(old) == result_config(today)


def test_a_checkpoint_from_before_the_options_for_gpus_is_known_by_those_of_its_time() -> None:
    today = plain_config()
    fabric = {key: value for key, value in today["fabric"].items() if key != "tf32"}
    old = {key: value for key, value in today.items() if key != "deterministic"}
    old["fabric"] = fabric
    assert result_config(old) == result_config(today)
    later = {"deterministic", "fabric.tf32"}
    written, canonical, _ = earlier_options(old)
    assert not later & (written.keys() | canonical.keys())
    # The form of the version before: that of today without the options that came later.
    today_without = {k: v for k, v in result_config(today).items() if k not in later}
    assert canonical == today_without
    assert json.dumps(canonical) != json.dumps(written)  # 0.0 is 0 in one of them


def test_image_folders_of_older_configs_have_no_white_point_and_splits() -> None:
    today = plain_config(*overrides_of("data", "image_folder"), "data.interpolation=bilinear")
    later = ("white_point", "layout", "resize", "interpolation", "pad_color", "window", "channels")
    old = today | {"data": {k: v for k, v in today["data"].items() if k not in later}}
    assert result_config(old) == result_config(today)
    # Checkpoints of that time are known by the options as they were written.
    assert "data.white_point" not in earlier_options(old)[0]
    table = plain_config(*overrides_of("data", "table"))
    later = ("weight_column", "channels")
    old = table | {"data": {k: v for k, v in table["data"].items() if k not in later}}
    assert result_config(old) == result_config(table)
    brighter = today | {"data": today["data"] | {"white_point": 4095}}
    assert result_config(brighter) != result_config(today)
