"""Worker of dask, started in jobs, that finishes its slide when its time is over."""

from __future__ import annotations

import asyncio
import time
from typing import Any

from distributed import Worker

_LOOK_SECONDS = 0.2
_COLLECT_SECONDS = 10.0


class SlideWorker(Worker):  # type: ignore[misc]
    """Worker that finishes its slide before it closes gracefully.

    dask's own worker hands a running task to another worker, which begins it again. The work is
    then lost, and a slide that takes longer than a worker's lifetime would never be done.
    """

    async def close_gracefully(
        self, restart: bool | None = None, reason: str = "worker-close-gracefully"
    ) -> None:
        """Accept no more slides, finish the current one, and close.

        The batch system kills a worker that takes longer than its walltime; the try of the slide
        then counts as lost.
        """
        state: Any = self.state
        if self.status.name == "running":
            await self.scheduler.retire_workers(
                workers=[self.address], close_workers=False, remove=False
            )
            while state.executing_count:
                await asyncio.sleep(_LOOK_SECONDS)
            # The result is a small row; it is dropped here when it has been fetched.
            end = time.monotonic() + _COLLECT_SECONDS
            while self.data and time.monotonic() < end:
                await asyncio.sleep(_LOOK_SECONDS)
            await self.close(nanny=not restart, reason=reason)
        else:
            await super().close_gracefully(restart=restart, reason=reason)
