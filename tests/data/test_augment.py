"""Augmented views are pure functions of (seed, view, sample)."""

import os
import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms import v2

from helpers import IMPORTABLE
from helpers.devices import DEVICES
from tvf.data.augment import (
    Augmentation,
    FlipsAndCrops,
    TorchvisionTransforms,
    require_plain_variant,
    uniform,
)
from tvf.errors import InputError
from tvf.store.fingerprint import fingerprint

augments = st.builds(
    FlipsAndCrops,
    horizontal=st.floats(0, 1),
    vertical=st.floats(0, 1),
    padding=st.integers(0, 4),
    seed=st.integers(0, 2**32 - 1),
)
IMAGES = torch.randint(
    0, 256, (40, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
)
SAMPLES = np.arange(40)


@given(
    augment=augments,
    view=st.integers(0, 1000),
    order=st.permutations(range(40)),
    cut=st.integers(1, 39),
)
@settings(deadline=None)
def test_a_view_of_a_sample_does_not_depend_on_its_batch_or_order(
    augment: FlipsAndCrops, view: int, order: list[int], cut: int
) -> None:
    together = augment(IMAGES, SAMPLES, view)
    batches = [np.array(order[:cut]), np.array(order[cut:])]
    separately = [augment(IMAGES[torch.from_numpy(batch)], batch, view) for batch in batches]
    assert torch.equal(torch.cat(separately), together[torch.tensor(order)])


@given(augment=augments, view=st.integers(0, 1000))
@settings(deadline=None, max_examples=20)
def test_augmenting_does_not_modify_its_input(augment: FlipsAndCrops, view: int) -> None:
    before = IMAGES.clone()
    augment(IMAGES, SAMPLES, view)
    assert torch.equal(IMAGES, before)


def test_another_seed_or_view_gives_other_pixels() -> None:
    first = FlipsAndCrops(horizontal=0.5, padding=2, seed=1)
    other_seed = FlipsAndCrops(horizontal=0.5, padding=2, seed=2)
    assert not torch.equal(first(IMAGES, SAMPLES, 1), first(IMAGES, SAMPLES, 2))
    assert not torch.equal(first(IMAGES, SAMPLES, 1), other_seed(IMAGES, SAMPLES, 1))


def test_without_options_a_view_is_the_image() -> None:
    assert torch.equal(FlipsAndCrops()(IMAGES, SAMPLES, 3), IMAGES)


def test_certain_flips_mirror_every_image() -> None:
    assert torch.equal(FlipsAndCrops(horizontal=1)(IMAGES, SAMPLES, 1), IMAGES.flip(-1))
    assert torch.equal(FlipsAndCrops(vertical=1)(IMAGES, SAMPLES, 1), IMAGES.flip(-2))


def test_a_crop_is_a_window_of_the_image_padded_with_black() -> None:
    cropped = FlipsAndCrops(padding=3)(IMAGES, SAMPLES, 1)
    padded = torch.nn.functional.pad(IMAGES, [3] * 4)
    for image, frame in zip(cropped, padded, strict=True):
        windows = [
            frame[:, top : top + 12, left : left + 12] for top in range(7) for left in range(7)
        ]
        assert sum(torch.equal(image, window) for window in windows) == 1


def test_numbers_are_uniform_and_uncorrelated_across_draws_views_samples_and_seeds() -> None:
    count = 20_000
    base = uniform(0, 0, np.arange(count), 0)
    histogram = np.histogram(base, bins=50, range=(0, 1))[0]
    assert np.abs(histogram - count / 50).max() < 5 * np.sqrt(count / 50)
    others = [
        uniform(1, 0, np.arange(count), 0),
        uniform(0, 1, np.arange(count), 0),
        uniform(0, 0, np.arange(count), 1),
    ]
    for other in [*others, np.roll(base, 1)]:
        assert abs(np.corrcoef(base, other)[0, 1]) < 5 / np.sqrt(count)


@pytest.mark.parametrize(
    "wrong", [{"horizontal": 1.5}, {"vertical": -0.1}, {"padding": -1}, {"seed": -1}]
)
def test_options_out_of_range_are_errors(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match=f"augment.{next(iter(wrong))}"):
        FlipsAndCrops(**wrong)  # type: ignore[arg-type]


def test_each_epoch_has_its_own_view_or_cycles_through_a_few() -> None:
    assert [FlipsAndCrops().view_of(epoch) for epoch in (1, 2, 7)] == [1, 2, 7]
    assert [FlipsAndCrops(views=3).view_of(epoch) for epoch in range(1, 8)] == [1, 2, 3, 1, 2, 3, 1]


@pytest.mark.parametrize("views", [0, -1, "four", 1.5, True])
def test_views_must_be_epochs_or_a_number(views: object) -> None:
    with pytest.raises(InputError, match="augment.views"):
        FlipsAndCrops(views=views)  # type: ignore[arg-type]


@given(augment=augments, one=st.integers(1, 50), other=st.integers(1, 50))
@settings(deadline=None)
def test_equal_variants_are_equal_images(augment: FlipsAndCrops, one: int, other: int) -> None:
    same = augment.variants(SAMPLES, one) == augment.variants(SAMPLES, other)
    views = augment(IMAGES, SAMPLES, one), augment(IMAGES, SAMPLES, other)
    assert all(torch.equal(a, b) for a, b, equal in zip(*views, same, strict=True) if equal)


def transforms(seed: int = 0) -> TorchvisionTransforms:
    """Crops, flips, colours and noise, which draw from torch's generator."""
    return TorchvisionTransforms(
        transforms=[
            v2.RandomResizedCrop(12, (0.3, 1.0)),
            v2.RandomHorizontalFlip(),
            v2.ColorJitter(0.4, 0.4),
            v2.RandomErasing(0.5),
            v2.RandAugment(),
        ],
        seed=seed,
    )


@pytest.mark.slow
@given(view=st.integers(0, 1000), order=st.permutations(range(40)), cut=st.integers(1, 39))
@settings(deadline=None, max_examples=10)
def test_a_view_by_torchvision_does_not_depend_on_batch_or_order(
    view: int, order: list[int], cut: int
) -> None:
    together = transforms()(IMAGES, SAMPLES, view)
    batches = [np.array(order[:cut]), np.array(order[cut:])]
    separately = [transforms()(IMAGES[torch.from_numpy(batch)], batch, view) for batch in batches]
    assert torch.equal(torch.cat(separately), together[torch.tensor(order)])
    assert not torch.equal(together, transforms(seed=1)(IMAGES, SAMPLES, view))


def test_torchvision_transforms_restore_the_random_generators() -> None:
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()  # type: ignore[index]
    transforms()(IMAGES, SAMPLES, 1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())  # type: ignore[index]


@pytest.mark.slow
def test_another_process_gives_the_same_views_and_fingerprints() -> None:
    values = "[transforms()(IMAGES, SAMPLES, 5), transforms(), FlipsAndCrops(padding=1)]"
    code = f"from test_augment import *; print(fingerprint({values}))"
    paths = os.pathsep.join([os.path.dirname(__file__), IMPORTABLE])
    environment = os.environ | {"PYTHONPATH": paths, "PYTHONHASHSEED": "7"}
    printed = subprocess.check_output(
        [sys.executable, "-c", code], text=True, env=environment
    ).split()[-1]
    assert printed == fingerprint(
        [transforms()(IMAGES, SAMPLES, 5), transforms(), FlipsAndCrops(padding=1)]
    )


def test_fingerprints_of_transforms_depend_on_their_options() -> None:
    fingerprints = {
        fingerprint(TorchvisionTransforms(transforms=[v2.ColorJitter(brightness)]))
        for brightness in (0.1, 0.2, 0.2)
    }
    assert len(fingerprints) == 2


def test_transforms_that_change_size_or_type_are_errors() -> None:
    for transform in (v2.Resize(10), v2.ToDtype(torch.float32, scale=True)):
        with pytest.raises(InputError, match="augment.transforms returned"):
            TorchvisionTransforms(transforms=[transform])(IMAGES, SAMPLES, 1)
    for transform in (
        v2.Normalize([0.5], [0.5]),
        v2.CutMix(num_classes=2),
        v2.FiveCrop(8),
        v2.ToPILImage(),
    ):
        with pytest.raises(InputError, match=r"augment\.transforms(: .* failed| returned)"):
            TorchvisionTransforms(transforms=[transform])(IMAGES, SAMPLES, 1)
    with pytest.raises(InputError, match=r"augment.transforms=\[\] must be a non-empty list"):
        TorchvisionTransforms()


def test_an_augmentation_whose_plain_variant_changes_the_image_raises() -> None:
    """The store would show the plain image instead, without a word."""

    class Inverted(FlipsAndCrops):
        def __call__(self, images: Tensor, samples: np.ndarray, view: int) -> Tensor:
            return 255 - images

        def variants(self, samples: np.ndarray, view: int) -> np.ndarray | None:
            return np.zeros(len(samples), np.int64)

    images = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(InputError, match="Inverted.variants gives id 0 to a view that changes"):
        require_plain_variant(Inverted(), images, np.arange(4))
    require_plain_variant(FlipsAndCrops(horizontal=0.5), images, np.arange(4))
    require_plain_variant(Augmentation(), images, np.arange(4))


@pytest.mark.parametrize("device", DEVICES)
@given(augment=augments, view=st.integers(1, 1000))
@settings(deadline=None, max_examples=25)
def test_a_view_is_the_same_bit_for_bit_on_every_device(
    device: str, augment: FlipsAndCrops, view: int
) -> None:
    there = augment(IMAGES.to(device), SAMPLES, view)
    assert augment.is_portable and there.device.type == device
    assert torch.equal(there.cpu(), augment(IMAGES, SAMPLES, view))


def test_a_view_uses_no_generator_of_the_device() -> None:
    """On torch's device without data, a draw or a read of pixels would raise or be missing."""
    before = torch.get_rng_state()
    view = FlipsAndCrops(horizontal=0.5, vertical=0.5, padding=2)(IMAGES.to("meta"), SAMPLES, 1)
    assert view.device.type == "meta" and view.shape == IMAGES.shape
    assert torch.equal(torch.get_rng_state(), before)
