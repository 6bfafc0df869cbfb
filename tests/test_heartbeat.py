"""heartbeat.py: a process that gives no sign any more ends the others, which would wait for hours."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys

import pytest
from conftest import ENVIRONMENT, ROOT

WAITING = """
import sys, time
from common import distributed, heartbeat
heartbeat.BEAT = 0.2
distributed.init("cpu")
distributed.barrier()
if distributed.rank() == int(sys.argv[1]):
    print("ready", flush=True)
    time.sleep(99)
distributed.barrier()
print("on")
distributed.close()
"""


@pytest.mark.parametrize("lost", [0, 1])
def test_a_process_that_gives_no_sign_ends_the_others_with_one_line(lost: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = str(free.getsockname()[1])
    together = ENVIRONMENT | {"PYTHONPATH": str(ROOT), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [
        subprocess.Popen(
            [sys.executable, "-c", WAITING, str(lost)],
            env=together | {"WORLD_SIZE": "2", "RANK": rank, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in "01"
    ]
    try:
        assert both[lost].stdout.readline() == "ready\n"  # type: ignore[union-attr]
        os.kill(both[lost].pid, signal.SIGSTOP)  # its connections stay open
        out, err = both[1 - lost].communicate(timeout=60)
        assert both[1 - lost].returncode == 130
        assert out == ""
        assert err == f"-c: process {lost} gives no sign any more; stopped, go on with --resume\n"
    finally:
        for process in both:
            process.kill()
            process.communicate()
