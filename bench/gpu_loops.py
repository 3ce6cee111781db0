"""The training loops that bench/gpu.py compares tvf with: the same work without tvf.

`plain` is what tutorials do: a DataLoader with four workers that transform PIL images, a read of
the loss in every step. `tuned` is what a good engineer makes of it in an afternoon: uint8 batches
from eight workers in pinned memory, flips and normalisation on the device, channels_last, fused
Adam, frozen layers under no_grad, cuDNN's search for the fastest kernels, no read before the end of
an epoch; optionally torch.compile. Both compute what tvf computes, in the same precision, on the
same images.

Prints one line of JSON.
"""

import time

STARTED = time.perf_counter()

import argparse  # noqa: E402
import contextlib  # noqa: E402
import json  # noqa: E402
from collections.abc import Callable  # noqa: E402
from dataclasses import dataclass  # noqa: E402
from typing import Any  # noqa: E402

import numpy as np  # noqa: E402
import torch  # noqa: E402
from PIL import Image  # noqa: E402
from reference import BACKBONE_LR as LOW_LR  # noqa: E402
from reference import LR, STAGES, TRAINED, WEIGHT_DECAY, freeze, train_mode  # noqa: E402
from torch import Tensor, nn  # noqa: E402
from torch.utils.data import DataLoader, Dataset  # noqa: E402
from torchvision import models, transforms  # noqa: E402

from tvf.data import DataSplits, Elpv, Split  # noqa: E402
from tvf.models import efficientnet_lite0  # noqa: E402


@dataclass(frozen=True)
class Work:
    """What all loops have in common."""

    device: torch.device
    batch: int
    size: int
    limit: int | None
    epochs: int
    bf16: bool
    compiled: bool = False

    def data(self) -> DataSplits:
        """The images of tvf's jobs, in tvf's splits."""
        return Elpv(image_size=self.size, split_by="cell", limit=self.limit).load()

    def precision(self) -> Any:
        """The context of a forward pass."""
        if self.bf16:
            return torch.autocast(self.device.type, torch.bfloat16)
        return contextlib.nullcontext()

    def wait(self) -> None:
        """Wait for the device."""
        if self.device.type == "cuda":
            torch.cuda.synchronize()


class PilCells(Dataset):
    """PIL images with their transforms, as in tutorials; even without decoding the files."""

    def __init__(self, split: Split, flip: bool) -> None:
        self.images = split.pixels(np.arange(len(split))).permute(0, 2, 3, 1).numpy()
        self.labels = split.labels.tolist()
        flips = [transforms.RandomHorizontalFlip()] if flip else []
        normalise = transforms.Normalize([0.5] * 3, [0.5] * 3)
        self.transform = transforms.Compose([*flips, transforms.ToTensor(), normalise])

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return self.transform(Image.fromarray(self.images[index])), self.labels[index]


class RawCells(Dataset):
    """Whole batches of uint8 pixels."""

    def __init__(self, split: Split) -> None:
        self.images, self.labels = split.pixels(np.arange(len(split))), split.labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitems__(self, indices: list[int]) -> tuple[Tensor, Tensor]:
        return self.images[indices], self.labels[indices]


def _as_it_is(batch: Any) -> Any:
    return batch


def loaders(style: str, work: Work, data: DataSplits) -> list[DataLoader]:
    """Loaders for train, val and test."""
    on_gpu = work.device.type == "cuda"
    workers = (8 if style == "tuned" else 4) if on_gpu else 0
    found = []
    for name, split in data.by_name.items():
        how: dict[str, Any] = {"batch_size": work.batch, "shuffle": name == "train"}
        how |= {"num_workers": workers}
        if style == "tuned":
            how |= {"pin_memory": on_gpu, "persistent_workers": workers > 0}
            found.append(DataLoader(RawCells(split), collate_fn=_as_it_is, **how))
        else:
            found.append(DataLoader(PilCells(split, flip=name == "train"), **how))
    return found


def parts_of(network: Any, fraction: float, compiled: bool) -> Callable[[Tensor], Tensor]:
    """The tuned forward pass: frozen layers without autograd, and the others."""
    names = [name for stage in STAGES for name in stage]
    count = sum(map(len, STAGES[: len(STAGES) - TRAINED[fraction]]))
    before = nn.Sequential(*(network.get_submodule(name) for name in names[:count]))
    after = nn.Sequential(*(network.get_submodule(name) for name in names[count:]))

    def rest(hidden: Tensor) -> Tensor:
        return network.forward_head(after(hidden))

    run: Any = torch.compile(rest, mode="reduce-overhead") if compiled else rest

    def forward(images: Tensor) -> Tensor:
        with torch.no_grad():
            hidden = before(images)
        return run(hidden)

    return forward


class Loop:
    """One job of a reference loop."""

    def __init__(self, style: str, work: Work, network: Any, forward: Any, groups: Any) -> None:
        self.tuned, self.work, self.network, self.forward = style == "tuned", work, network, forward
        self.optimizer = torch.optim.Adam(groups, weight_decay=WEIGHT_DECAY, fused=self.tuned)
        self.criterion = nn.CrossEntropyLoss()

    def run(
        self, feeds: list[DataLoader], set_mode: Callable[[], Any], epochs: int
    ) -> dict[str, Any]:
        """Train, validate after each epoch, keep the best weights, and test them once."""
        times, trained, best, weights = [], [], -1.0, {}
        for _ in range(epochs):
            start = time.perf_counter()
            set_mode()
            self._train(feeds[0])
            self.work.wait()
            trained.append(time.perf_counter() - start)
            accuracy = self._evaluate(feeds[1])
            if accuracy > best:
                best = accuracy
                weights = {name: t.clone() for name, t in self.network.state_dict().items()}
            times.append(time.perf_counter() - start)
        start = time.perf_counter()
        self.network.load_state_dict(weights)
        test = self._evaluate(feeds[2])
        seconds = time.perf_counter() - start
        return {
            "epoch_seconds": times,
            "train_seconds": trained,
            "test_seconds": seconds,
            "val_acc": best,
            "test_acc": test,
        }

    def _train(self, feed: DataLoader) -> None:
        running = torch.zeros((), device=self.work.device)
        for images, labels in feed:
            images, labels = self._to_device(images, labels, flip=True)
            self.optimizer.zero_grad()
            with self.work.precision():
                loss = self.criterion(self.forward(images).float(), labels)
            loss.backward()
            self.optimizer.step()
            running += loss.detach() if self.tuned else loss.item()

    @torch.no_grad()
    def _evaluate(self, feed: DataLoader) -> float:
        self.network.eval()
        hits, count = torch.zeros((), device=self.work.device), 0
        for images, labels in feed:
            images, labels = self._to_device(images, labels, flip=False)
            with self.work.precision():
                hits += (self.forward(images).argmax(1) == labels).sum()
            count += len(labels)
        return hits.item() / count

    def _to_device(self, images: Tensor, labels: Tensor, flip: bool) -> tuple[Tensor, Tensor]:
        device, ahead = self.work.device, self.tuned
        images, labels = (
            images.to(device, non_blocking=ahead),
            labels.to(device, non_blocking=ahead),
        )
        if not self.tuned:
            return images, labels
        if flip:
            chosen = torch.rand(len(images), 1, 1, 1, device=device) < 0.5
            images = torch.where(chosen, images.flip(-1), images)
        images = images.contiguous(memory_format=torch.channels_last)
        return (images / 255 - 0.5) / 0.5, labels


def run_fractions(style: str, work: Work, fractions: list[float]) -> dict[str, Any]:
    """One job of each fraction, in one process: seconds to the first, and of each."""
    set_switches(style)
    data, jobs, start = work.data(), {}, 0.0
    for fraction in fractions:
        torch.manual_seed(1)
        network: Any = efficientnet_lite0(2).module
        frozen, unfrozen = freeze(network, fraction)
        network = network.to(work.device)
        if style == "tuned":
            network = network.to(memory_format=torch.channels_last)
        groups: list[dict[str, Any]] = [{"params": list(network.classifier.parameters()), "lr": LR}]
        if unfrozen:
            groups.append({"params": unfrozen, "lr": LOW_LR})
        tuned = style == "tuned"
        forward = parts_of(network, fraction, work.compiled) if tuned else network
        loop, feeds = Loop(style, work, network, forward, groups), loaders(style, work, data)
        start = start or time.perf_counter() - STARTED
        modes = lambda network=network, frozen=frozen: train_mode(network, frozen)  # noqa: E731
        jobs[f"{fraction:g}"] = loop.run(feeds, modes, work.epochs)
    return {"start_seconds": start, "train_images": len(data.train), "jobs": jobs}


def run_resnet50(style: str, work: Work) -> dict[str, Any]:
    """ResNet50 with random weights, trained whole, as torchvision's reference script does it."""
    set_switches(style)
    data = work.data()
    torch.manual_seed(1)
    network = models.resnet50(weights=None, num_classes=2).to(work.device)
    network = network.to(memory_format=torch.channels_last)
    groups = [{"params": list(network.parameters()), "lr": LOW_LR}]
    loop = Loop(style, work, network, network, groups)
    job = loop.run(loaders(style, work, data), network.train, work.epochs)
    best = min(job["train_seconds"][1:] or job["train_seconds"])
    return {"images_per_second": len(data.train) / best, **job}


def set_switches(style: str) -> None:
    torch.backends.cudnn.allow_tf32 = False  # as in tvf: float32 is float32
    torch.backends.cudnn.benchmark = style == "tuned"


def add_work(parser: argparse.ArgumentParser) -> None:
    """Add the options that `read_work` reads."""
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--bf16", action="store_true")
    parser.add_argument("--compiled", action="store_true")
    parser.add_argument("--fractions", type=float, nargs="+", default=sorted(TRAINED))


def read_work(given: argparse.Namespace) -> Work:
    """The work that the options describe."""
    shared = ("batch", "size", "limit", "epochs", "bf16", "compiled")
    return Work(torch.device(given.device), **{key: getattr(given, key) for key in shared})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("network", choices=["lite0", "resnet50"])
    parser.add_argument("style", choices=["plain", "tuned"])
    add_work(parser)
    arguments = parser.parse_args()
    work = read_work(arguments)
    if arguments.network == "resnet50":
        print(json.dumps(run_resnet50(arguments.style, work)))
    else:
        print(json.dumps(run_fractions(arguments.style, work, arguments.fractions)))
