"""Devices, and the processes of a job that trains on several devices."""

from tvf.distributed.arithmetic import DeviceMemoryError, memory_errors, set_arithmetic
from tvf.distributed.collectives import (
    RankStrategy,
    gather,
    global_batchnorm,
    reduce_gradients,
    share_of,
)
from tvf.distributed.devices import (
    available_cores,
    claim_gpus,
    count_devices,
    describe_machine,
    library_versions,
    peak_device_memory_mb,
    peak_memory_mb,
    require_devices,
    reset_peak_memory,
    set_threads,
    single_thread,
    source_commit,
)
from tvf.distributed.ranks import die_with_parent, start_ranks
from tvf.distributed.sharing import claim_shared_gpu, training_begins

__all__ = [
    "DeviceMemoryError",
    "RankStrategy",
    "available_cores",
    "claim_gpus",
    "claim_shared_gpu",
    "count_devices",
    "describe_machine",
    "die_with_parent",
    "gather",
    "global_batchnorm",
    "library_versions",
    "memory_errors",
    "peak_device_memory_mb",
    "peak_memory_mb",
    "reduce_gradients",
    "require_devices",
    "reset_peak_memory",
    "set_arithmetic",
    "set_threads",
    "share_of",
    "single_thread",
    "source_commit",
    "start_ranks",
    "training_begins",
]
