"""Run a dask worker that processes slides for the process that started it, and ends with it.

``python -m wsiad.compute.local_worker SCHEDULER NAME BYTES FOLDER``: the scheduler's address,
the worker's name, its share of the memory (0: no limit) and a folder for dask's own files.
"""

from __future__ import annotations

import asyncio
import logging
import os
import sys
import threading
from typing import Any

MEMORY_EXIT = 86
"""Exit code of a worker that has reached its share of the memory."""

_LOOK_SECONDS = 0.1


def main() -> None:
    """Work until the process at the other end of the standard input has exited."""
    # First of all: importing dask takes long enough to be left alone meanwhile.
    threading.Thread(target=_end_with_parent, daemon=True).start()
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s %(name)s: %(message)s")
    address, name, share, folder = sys.argv[1:]
    import dask

    from wsiad.compute.jobs import MEMORY

    dask.config.set(MEMORY | {"logging.distributed": "error"})
    asyncio.run(_work(address, name, int(share), folder))


def _end_with_parent() -> None:
    """Exit immediately when nobody holds the other end of the standard input any more.

    A later process deletes files that are half written then, because their writer is dead.
    """
    while os.read(0, 1):
        pass
    os._exit(1)


async def _work(address: str, name: str, share: int, folder: str) -> None:
    from distributed import Worker

    async with Worker(
        address,
        nthreads=1,
        name=name,
        host="127.0.0.1",
        dashboard=False,
        local_directory=folder,
        memory_limit=share,
    ) as worker:
        watch = asyncio.create_task(_watch_memory(worker, share))
        await worker.finished()
        watch.cancel()


async def _watch_memory(worker: Any, share: int) -> None:
    """Exit before the operating system kills a process for memory: it may choose another one."""
    import dask

    fraction = dask.config.get("distributed.worker.memory.terminate")
    while share and fraction:
        if worker.monitor.get_process_memory() > fraction * share:
            os._exit(MEMORY_EXIT)
        await asyncio.sleep(_LOOK_SECONDS)


if __name__ == "__main__":
    main()
