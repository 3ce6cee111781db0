"""Reads the images of a sweep once, before its first job trains: damaged ones end it there.

The store keeps what is read, so the jobs do not read it again.
"""

import json
import multiprocessing
import os
from collections.abc import Iterable, Sequence
from contextlib import suppress
from multiprocessing.connection import Connection

from tvf.config import Affects, Config, affects, build_part
from tvf.errors import InputError


def check_images(configs: Iterable[Config]) -> None:
    """Raise InputError if images of these jobs cannot be read.

    Runs in a process of its own: threads that read images would not survive the forks of the jobs.
    """
    distinct: dict[str, Config] = {}
    for config in configs:
        options = {
            key: value
            for key, value in config["data"].items()
            if Affects.FROZEN_LAYERS in affects(f"data.{key}")
        }
        distinct.setdefault(json.dumps(options, sort_keys=True), config)
    if not distinct:  # all jobs are done
        return
    fork = multiprocessing.get_context("fork")
    receive, send = fork.Pipe(duplex=False)
    process = fork.Process(target=_check, args=(list(distinct.values()), send, os.getpid()))
    process.start()
    send.close()
    fault = None
    try:
        with suppress(EOFError):  # it was killed, perhaps for want of memory: a job will say so
            fault = receive.recv()
    except BaseException:  # Ctrl-C
        process.terminate()
        raise
    finally:
        process.join()
        receive.close()
    if fault is not None:
        raise InputError(fault)


def _check(configs: Sequence[Config], send: Connection, parent: int) -> None:
    from tvf.distributed import die_with_parent  # imports torch

    die_with_parent(parent)
    try:
        for config in configs:
            _check_source(config, alone=len(configs) == 1)
        send.send(None)
    except InputError as error:
        send.send(str(error))
    except (Exception, KeyboardInterrupt):  # a job will meet it too, and records it
        send.send(None)


def _check_source(config: Config, alone: bool) -> None:
    source = build_part(config, "data")
    with build_part(config, "store").open() as store:
        # Without a store, jobs read all images themselves before they train: once is enough then.
        if hasattr(source, "check_images") and not (alone and store is None):
            source.check_images(progress=True, store=store)
