"""Images that are too many to keep: their files are decoded whenever they are read."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor

from tvf.data.encoded import ImageFile, name_of
from tvf.errors import InputError
from tvf.files import printable


class ImageFiles:
    """Images that are decoded from `files` when they are taken, uint8 [N, 3, S, S].

    `read(rows)` decodes some of them, as a tensor and the digests of its images, bytes [B].
    `digests` are those of all images, as they were when the job began.
    """

    def __init__(
        self,
        files: Sequence[ImageFile],
        image_size: int,
        digests: np.ndarray,
        read: Callable[[np.ndarray], tuple[Tensor, np.ndarray]],
    ) -> None:
        self.shape = torch.Size((len(files), 3, image_size, image_size))
        self._files, self._digests, self._read = files, digests, read

    @property
    def nbytes(self) -> int:
        """The bytes that all images would take."""
        return self.shape.numel()

    def __getitem__(self, rows: Tensor) -> Tensor:
        """Some images, by their numbers, int64 [B]. InputError if a file has changed or is gone."""
        numbers = rows.numpy()
        images, digests = self._read(numbers)
        changed = numbers[digests != self._digests[numbers]]
        if len(changed):
            first = printable(name_of(self._files[changed[0]]))
            raise InputError(
                f"{first} has changed since the job began. Images are read anew in each epoch: "
                "leave them as they are, and train again."
            )
        return images
