"""How a GPU computes, and what is said when its memory is not enough."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from tvf.distributed.arithmetic import memory_errors, set_arithmetic
from tvf.distributed.devices import peak_device_memory_mb, places_on
from tvf.errors import InputError
from tvf.store import numeric_environment

CUDA = torch.device("cuda")


@pytest.fixture
def own_switches() -> Any:
    """torch's switches as they were, after the test."""
    cudnn: Any = torch.backends.cudnn
    matmul = torch.backends.cuda.matmul
    before = cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic
    yield
    cudnn.allow_tf32, matmul.allow_tf32, cudnn.benchmark, cudnn.deterministic = before
    torch.use_deterministic_algorithms(False)


def test_a_gpu_computes_in_full_float32_unless_asked(
    own_switches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", "")
    cudnn, matmul = torch.backends.cudnn, torch.backends.cuda.matmul
    for tf32, deterministic in ((True, True), (False, False)):
        set_arithmetic(CUDA, tf32=tf32, deterministic=deterministic)
        assert (cudnn.allow_tf32, matmul.allow_tf32) == (tf32, tf32)
        assert (cudnn.deterministic, cudnn.benchmark) == (deterministic, False)
        assert torch.are_deterministic_algorithms_enabled() == deterministic


def test_a_cpu_has_no_such_switches(own_switches: None) -> None:
    before = torch.backends.cudnn.allow_tf32
    set_arithmetic(torch.device("cpu"), tf32=not before, deterministic=True)
    assert torch.backends.cudnn.allow_tf32 == before
    assert not torch.are_deterministic_algorithms_enabled()


def test_activations_of_gpus_that_round_differently_are_not_shared(
    own_switches: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def environment(name: str = "H100", capability: tuple[int, int] = (9, 0)) -> list[Any]:
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: name)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
        precision = SimpleNamespace(precision="32-true")
        fabric: Any = SimpleNamespace(device=CUDA, strategy=SimpleNamespace(precision=precision))
        return numeric_environment(fabric, torch.nn.Linear(1, 1).parameters())

    set_arithmetic(CUDA, tf32=False, deterministic=False)
    plain = environment()
    assert plain == environment()
    different = [environment("A100"), environment(capability=(8, 0))]
    set_arithmetic(CUDA, tf32=True, deterministic=False)
    different.append(environment())
    set_arithmetic(CUDA, tf32=False, deterministic=True)
    different.append(environment())
    assert all(other != plain for other in different)
    assert len({str(other) for other in different}) == len(different)


@pytest.mark.parametrize(
    "error",
    [
        torch.cuda.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has"),
        RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate`"),
    ],
)
def test_too_little_memory_is_an_error_that_says_what_to_lower(error: RuntimeError) -> None:
    with pytest.raises(InputError) as raised, memory_errors(["lower this", "set that=off"]):
        raise error
    first = str(error).partition(". ")[0].partition("\n")[0]
    assert str(raised.value) == (
        f"the device has too little memory for this job ({first}): lower this, or set that=off."
    )
    assert raised.value.__cause__ is error


def test_other_errors_stay_as_they_are() -> None:
    with pytest.raises(RuntimeError, match="broken") as raised, memory_errors(["lower this"]):
        raise RuntimeError("broken")
    assert not isinstance(raised.value, InputError)


def test_the_places_of_each_gpu_come_before_second_places() -> None:
    assert places_on(["a", "b"], 1) == ["a", "b"]
    assert places_on(["a", "b"], 3) == ["a", "b", "a-1", "b-1", "a-2", "b-2"]


def test_a_cpu_has_no_memory_of_its_own_to_report() -> None:
    assert peak_device_memory_mb(torch.device("cpu")) is None
