"""Two training loops to compare tvf with: the same work without tvf.

`plain` is what tutorials do: a DataLoader with two workers, torchvision transforms on PIL images,
the default memory format, the default Adam. `tuned` is what a good engineer can do in an afternoon:
images decoded once and kept in memory as uint8, flips on whole batches, channels_last, fused Adam,
frozen layers under no_grad.

Prints one line of JSON: seconds to the first batch, of each epoch with its validation, and of the
test; and the scores.
"""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
import os  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from elpv_dataset.utils import load_dataset  # noqa: E402
from PIL import Image  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import transforms  # noqa: E402

from tvf.data.sources.elpv import Elpv  # noqa: E402
from tvf.data.splits import divide  # noqa: E402
from tvf.models import efficientnet_lite0  # noqa: E402

SIZE, BATCH, LR, BACKBONE_LR, WEIGHT_DECAY = 128, 32, 1e-3, 1e-4, 1e-4
# The modules of the nine groups in forward order; TRAINED counts from the end.
STAGES = [["conv_stem", "bn1"], *([f"blocks.{i}"] for i in range(7)), ["conv_head", "bn2"]]
TRAINED = {0.0: 0, 0.25: 2, 0.5: 4, 1.0: 9}


def split() -> tuple[np.ndarray, np.ndarray, list[np.ndarray]]:
    """All images, their labels, and the indices of train, val and test, with tvf's splits."""
    images, probability, _ = load_dataset()
    source = Elpv(image_size=SIZE, split_by="cell")
    places = divide(source.catalog(), source)
    return (
        images,
        (probability >= 0.5).astype(np.int64),
        [places[name] for name in ("train", "val", "test")],
    )


def freeze(network: Any, fraction: float) -> tuple[list[list[str]], list[nn.Parameter]]:
    """Freeze all but the deepest groups and the head.

    Returns the frozen stages, and the backbone parameters that train.
    """
    for parameter in network.parameters():
        parameter.requires_grad = False
    for parameter in network.classifier.parameters():
        parameter.requires_grad = True
    frozen = STAGES[: len(STAGES) - TRAINED[fraction]]
    trained = [name for stage in STAGES[len(frozen) :] for name in stage]
    unfrozen = [p for name in trained for p in network.get_submodule(name).parameters()]
    for parameter in unfrozen:
        parameter.requires_grad = True
    return frozen, unfrozen


def train_mode(network: Any, frozen: list[list[str]]) -> None:
    """Set training mode, with frozen BatchNorm layers in eval mode."""
    network.train()
    for name in (name for stage in frozen for name in stage):
        for layer in network.get_submodule(name).modules():
            if isinstance(layer, nn.BatchNorm2d):
                layer.eval()


class Cells(Dataset):
    """PIL images with their transforms, as in tutorials."""

    def __init__(
        self, images: np.ndarray, labels: np.ndarray, samples: np.ndarray, transform: Any
    ) -> None:
        self.images, self.labels, self.samples, self.transform = images, labels, samples, transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        sample = self.samples[index]
        image = Image.fromarray(self.images[sample]).convert("RGB")
        return self.transform(image), int(self.labels[sample])


def plain_loaders(flip: bool) -> tuple[DataLoader, DataLoader, DataLoader]:
    """Loaders for train, val and test."""
    images, labels, splits = split()
    common = [transforms.ToTensor(), transforms.Normalize([0.5] * 3, [0.5] * 3)]
    augment = [transforms.RandomHorizontalFlip()] if flip else []
    eval_transform = transforms.Compose([transforms.Resize(SIZE), *common])
    train_transform = transforms.Compose([transforms.Resize(SIZE), *augment, *common])
    train, val, test = (
        Cells(images, labels, samples, train_transform if i == 0 else eval_transform)
        for i, samples in enumerate(splits)
    )
    return (
        DataLoader(train, BATCH, shuffle=True, num_workers=2),
        DataLoader(val, BATCH, num_workers=2),
        DataLoader(test, BATCH, num_workers=2),
    )


class InMemory:
    """Batches of decoded images, flipped and normalised as whole batches."""

    def __init__(self, images: Tensor, labels: Tensor, flip: bool, shuffle: bool) -> None:
        self.images, self.labels, self.flip, self.shuffle = images, labels, flip, shuffle

    def __iter__(self) -> Any:
        order = torch.randperm(len(self.labels)) if self.shuffle else torch.arange(len(self.labels))
        for samples in order.split(BATCH):
            images = self.images[samples]
            if self.flip:
                images = torch.where(
                    torch.rand(len(samples), 1, 1, 1) < 0.5, images.flip(-1), images
                )
            yield (images / 255 - 0.5) / 0.5, self.labels[samples]


def tuned_loaders(flip: bool) -> list[InMemory]:
    """Batches of train, val and test."""
    images, labels, splits = split()
    resize = transforms.Resize(SIZE)
    loaded = []
    for i, samples in enumerate(splits):
        resized = [np.asarray(resize(Image.fromarray(images[sample]))) for sample in samples]
        pixels = np.stack(resized)
        tensor = (
            torch.from_numpy(pixels)[:, None]
            .expand(-1, 3, -1, -1)
            .contiguous(memory_format=torch.channels_last)
        )
        loaded.append(
            InMemory(tensor, torch.from_numpy(labels[samples]), flip and i == 0, shuffle=i == 0)
        )
    return loaded


def tuned_forward(network: Any, frozen: list[list[str]]) -> Any:
    """The network's forward pass with its frozen layers under no_grad."""
    names = [name for stage in STAGES for name in stage]
    count = sum(map(len, frozen))
    before = nn.Sequential(*(network.get_submodule(name) for name in names[:count]))
    after = nn.Sequential(*(network.get_submodule(name) for name in names[count:]))

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = before(images)
        return network.forward_head(after(hidden))

    return forward


def run(
    style: str, fraction: float, epochs: int, seed: int, flip: bool, bf16: bool
) -> dict[str, Any]:
    """Train, validate after each epoch, and test once with the best weights on validation."""
    torch.manual_seed(seed)
    network: Any = efficientnet_lite0(2).module
    frozen, unfrozen = freeze(network, fraction)
    groups: list[dict[str, Any]] = [{"params": list(network.classifier.parameters()), "lr": LR}]
    if unfrozen:
        groups.append({"params": unfrozen, "lr": BACKBONE_LR})
    if style == "plain":
        loaders: Any = plain_loaders(flip)
        forward, optimizer = network, torch.optim.Adam(groups, weight_decay=WEIGHT_DECAY)
    else:
        loaders = tuned_loaders(flip)
        network = network.to(memory_format=torch.channels_last)
        forward = tuned_forward(network, frozen)
        optimizer = torch.optim.Adam(groups, weight_decay=WEIGHT_DECAY, fused=True)
    precision = torch.autocast("cpu", torch.bfloat16) if bf16 else contextlib.nullcontext()
    criterion = nn.CrossEntropyLoss()

    def evaluate(loader: Any) -> tuple[float, float]:
        network.eval()
        loss, hits, count = 0.0, 0, 0
        with torch.no_grad(), precision:
            for images, labels in loader:
                logits = forward(images)
                loss += criterion(logits, labels).item() * len(labels)
                hits += int((logits.argmax(1) == labels).sum())
                count += len(labels)
        return loss / count, hits / count

    times, best, weights = [], (-1.0, 0.0), {}
    started = time.perf_counter() - STARTED
    for _ in range(epochs):
        start = time.perf_counter()
        train_mode(network, frozen)
        for images, labels in loaders[0]:
            optimizer.zero_grad()
            with precision:
                loss = criterion(forward(images), labels)
            loss.backward()
            optimizer.step()
        loss, accuracy = evaluate(loaders[1])
        if (accuracy, -loss) > best:
            best, weights = (
                (accuracy, -loss),
                {name: t.clone() for name, t in network.state_dict().items()},
            )
        times.append(time.perf_counter() - start)
    start = time.perf_counter()
    network.load_state_dict(weights)
    test_acc = evaluate(loaders[2])[1]
    return {
        "start_seconds": started,
        "epoch_seconds": times,
        "test_seconds": time.perf_counter() - start,
        "val_acc": best[0],
        "test_acc": test_acc,
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("style", choices=["plain", "tuned"])
    parser.add_argument("--fraction", type=float, default=0.0, choices=sorted(TRAINED))
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--augment", choices=["flips", "none"], default="flips")
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    flip = arguments.augment == "flips"
    result = run(
        style=arguments.style,
        fraction=arguments.fraction,
        epochs=arguments.epochs,
        seed=arguments.seed,
        flip=flip,
        bf16=arguments.bf16,
    )
    print(json.dumps(result))
