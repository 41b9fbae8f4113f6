"""Real processes for tests: scripts of this folder started together, one thread each."""

import os
import re
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent


def free_ports(count: int) -> list[str]:
    """Ports that nobody listens on, all different; programs that look for one each may find the same."""
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for taken in sockets:
            taken.bind(("127.0.0.1", 0))
        return [str(taken.getsockname()[1]) for taken in sockets]


def environment(**more: str) -> dict[str, str]:
    """Nothing of a scheduler or of processes around, one thread, this checkout's packages."""
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("SLURM_", "MASTER_", "PL_"))}
    for key in ("RANK", "LOCAL_RANK", "NODE_RANK", "GROUP_RANK", "WORLD_SIZE"):
        clean.pop(key, None)
    return {**clean, "OMP_NUM_THREADS": "1", **more}


def start(arguments: Sequence[str], **more: str) -> "subprocess.Popen[str]":
    """Python with these arguments."""
    return subprocess.Popen(
        [sys.executable, *arguments], env=environment(**more), text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )


def finish(process: "subprocess.Popen[str]", seconds: float) -> str:
    """Its output; what it says on stderr is the failure's text."""
    try:
        output, errors = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        raise
    assert process.returncode == 0, errors
    return output


def own_words(output: str) -> str:
    """Without the lines, sometimes mixed, in which torch 2.8's Gloo reports its connections on stdout."""
    return "".join(line for line in output.splitlines(True) if not re.search(r"peer ranks|^\d*$", line))


def members(world: int) -> list[Mapping[str, str]]:
    """The variables of a launcher that starts every process itself, as torchrun does."""
    [port] = free_ports(1)
    return [
        {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "RANK": str(rank), "LOCAL_RANK": str(rank),
         "WORLD_SIZE": str(world)}
        for rank in range(world)
    ]  # fmt: skip
