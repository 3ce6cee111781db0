"""Jobs that are composed from one config have the configs that Hydra composes."""

import pickle
from typing import Any

import pytest
from hydra import initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import ConfigCompositionException
from hydra.types import RunMode

from helpers.composing import nodes
from tvf.config import conf_dir
from tvf.sweep.alike import AlikeLoader, compose_alike

JOBS = (
    ["model=transfer", "seed=1", "optimizer.lr=0.1", "data.limit=null"],
    ["model=transfer", "seed=2", "optimizer.lr=0.1", "tracker=none", "+experiment=smoke"],
    ["seed=3", "+data.foo=[1,2]", "data.foo=3"],
    ["~tracker.tags", "seed=4"],
    ['name="a b"', "seed=${epochs}", "data.train_limit=[1,{a:2}]"],
    ["model={pct_unfreeze:0.5}", "seed=6"],
    ["seed=7", "seed=8"],
    [],
)


def test_jobs_are_composed_as_by_hydra() -> None:
    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydras: Any = GlobalHydra.instance().config_loader()
        sweep = hydras.load_configuration(
            "config", ["hydra.sweep.dir=/tmp/x", "seed=1,2"], RunMode.MULTIRUN
        )
        compose_alike()
        own: Any = GlobalHydra.instance().config_loader()
        assert isinstance(own, AlikeLoader)
        workers = pickle.loads(pickle.dumps(own))  # as joblib sends it
        for overrides in [*JOBS, *JOBS[:2]]:
            expected = nodes(hydras.load_sweep_config(sweep, overrides))
            assert nodes(own.load_sweep_config(sweep, overrides)) == expected
            assert nodes(workers.load_sweep_config(sweep, overrides)) == expected
        with pytest.raises(ConfigCompositionException, match="sede"):
            own.load_sweep_config(sweep, ["sede=1"])


def test_jobs_are_composed_where_hydra_has_imported_its_plugins_twice(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def dumps(config: Any) -> bytes:
        raise pickle.PicklingError("it's not the same object as JobLibLauncherConf")

    with initialize_config_dir(str(conf_dir()), version_base="1.3"):
        hydras: Any = GlobalHydra.instance().config_loader()
        sweep = hydras.load_configuration("config", ["threads=3"], RunMode.MULTIRUN)
        own = AlikeLoader(hydras)
        monkeypatch.setattr("tvf.sweep.alike.pickle.dumps", dumps)
        for overrides in (["seed=1"], ["seed=2"]):
            expected = nodes(hydras.load_sweep_config(sweep, overrides))
            assert nodes(own.load_sweep_config(sweep, overrides)) == expected
