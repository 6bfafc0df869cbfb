"""Whether the other processes still live: where one is lost, all end within a minute, with one line.

A process that dies closes its connections, which the others see. One whose machine or network is gone
closes nothing, and the others would wait for it in a sum of gradients for as long as a candidate may train.
So a thread of each process counts up a key in the store where they met, and looks at that of the next one.
"""

from __future__ import annotations

import os
import sys
import threading
from datetime import timedelta

import torch.distributed as dist

BEAT = 4.0  # seconds between two beats
# Counted in beats of one's own, not in seconds: a program that was paused, a laptop that slept, lost nobody.
PATIENCE, ARRIVAL = 10, 150  # beats without a sign of a process, and until its first one
LEFT = "left"


class Heartbeat:
    """The threads of a process; `stop` ends them, in good order."""

    def __init__(self, rank: int, size: int) -> None:
        self.rank, self.next = rank, (rank + 1) % size
        self._over = threading.Event()
        self._rounds = 0  # exchanges with the store
        self._prefix = f"pairnas/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}"
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._judge)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Tell the others that this process is done."""
        self._over.set()
        self._threads[0].join(BEAT)

    def _exchange(self) -> None:
        """Beat, and look at the next process. Where the store is gone nothing counts: `_judge` sees it."""
        try:
            store = dist.TCPStore(
                os.environ["MASTER_ADDR"],
                int(os.environ["MASTER_PORT"]),
                timeout=timedelta(seconds=BEAT * ARRIVAL),
                wait_for_workers=False,
            )
            last, age = b"", 0
            own, other, lost = (f"{self._prefix}/{name}" for name in (self.rank, self.next, "lost"))
            while not self._over.wait(BEAT):
                self._rounds += 1
                store.set(own, str(self._rounds))
                now = store.get(other) if store.check([other]) else b""
                age = age + 1 if now == last and now != LEFT.encode() else 0
                last = now
                if age >= (PATIENCE if now else ARRIVAL):
                    store.set(lost, str(self.next))
                if store.check([lost]):
                    self._end(int(store.get(lost)))
            store.set(own, LEFT)
        except RuntimeError:  # no connection: the store's host is gone
            pass

    def _judge(self) -> None:
        """End this process where the store does not answer any more."""
        last, age = 0, 0
        while not self._over.wait(BEAT):
            age = age + 1 if self._rounds == last else 0
            last = self._rounds
            if age >= (PATIENCE if last else ARRIVAL):
                self._end(0)

    def _end(self, lost: int) -> None:
        """End this process at once, wherever it waits. One process of a machine speaks for all."""
        if os.environ.get("LOCAL_RANK", "0") == "0" or lost == 0:
            program = os.path.basename(sys.argv[0])
            words = f"process {lost} gives no sign any more; stopped, go on with --resume"
            os.write(2, f"{program}: {words}\n".encode())
        os._exit(130)
