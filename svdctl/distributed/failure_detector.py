"""End all processes of a run when one of them dies or fails, and print the cause once.

Every process keeps a TCP connection to rank 0. The kernel closes it when a process dies, whatever the cause, so that no
heartbeat is needed and a busy process is never mistaken for a dead one; TCP's keepalive detects a machine that is gone.
A process that waits in a collective operation, which NCCL lets wait for many minutes, is ended by a background thread
that reads a connection.

Rank 0 prints the cause; rank 1 does when rank 0 is the process that died.
"""

import json
import os
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from lightning_fabric import Fabric

from svdctl.errors import EndedElsewhere, SvdctlError, TrainingError
from svdctl.utils.printable import print_line, printable

GRACE = 12.0
"""Seconds that a process has to end by itself, once another one has died."""
_DETECTION_SECONDS = 4.0
"""Seconds to wait, after a collective operation has failed, for the news that another process has died."""
_TIMEOUT = 60.0
"""Seconds to wait for a connection between processes, and for the child processes to end after a sound run."""


class FailureDetector:
    """Watch the connections to the other processes, and end this one when another one dies or fails.

    Args:
        rank: of this process.
        world: number of processes.
        children: processes that this one started.
        broadcast: returns, in every process, the argument that rank 0 gave.
        advice: returns what the user should do next; the last words of the error message.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        children: list["subprocess.Popen[Any]"],
        broadcast: Callable[[Any], Any],
        advice: Callable[[], str],
    ) -> None:
        self.rank, self.world, self.children, self.advice = rank, world, children, advice
        self.cause: str | None = None
        """Why the run ends early; None: no failure is known; empty: another process prints the cause."""
        self._failure_known, self._is_ending = threading.Event(), threading.Event()
        self._lock, self._one_ends = threading.Lock(), threading.Lock()
        self._exit_code = 1
        self._peers = self._connect(broadcast)
        self._watchers = [
            threading.Thread(target=self._watch, args=peer, name="failure detector", daemon=True)
            for peer in self._peers.items()
        ]
        for watcher in self._watchers:
            watcher.start()

    def _connect(self, broadcast: Callable[[Any], Any]) -> dict[int, socket.socket]:
        """Return connected sockets by rank: to all other processes in rank 0, to rank 0 in the others."""
        peers: dict[int, socket.socket] = {}
        if self.rank == 0:
            families = {found[0] for found in socket.getaddrinfo(os.environ["MASTER_ADDR"], None)}
            family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
            with socket.create_server(("", 0), family=family, backlog=self.world) as server:
                server.settimeout(_TIMEOUT)
                _, token = broadcast((server.getsockname()[1], secrets.token_hex(16)))
                while len(peers) < self.world - 1:
                    found, _ = server.accept()
                    found.settimeout(5)
                    greeting = _read_line(found)
                    if greeting.get("token") == token:
                        peers[greeting["rank"]] = found
                    else:
                        found.close()
        else:
            port, token = broadcast(None)
            peers[0] = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=_TIMEOUT)
            _send(peers[0], {"rank": self.rank, "token": token})
        for peer in peers.values():
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return peers

    def finish(self) -> None:
        """Report that this process has finished; wait until rank 0 has, and in rank 0 until all others have."""
        self._send_all({"end": "done"})
        for watcher in self._watchers:
            watcher.join()

    def report_failure(self, error: BaseException) -> BaseException:
        """Send an error of this process to the others, unless the death of another process caused it.

        Returns:
            The exception to raise in this process; `EndedElsewhere` where another process prints the cause.
        """
        # A collective operation fails with a RuntimeError when another process has died.
        own = SvdctlError | torch.OutOfMemoryError
        may_be_collective = isinstance(error, RuntimeError) and not isinstance(error, own)
        if may_be_collective:
            self._failure_known.wait(_DETECTION_SECONDS)
        with self._lock:
            known = self.cause
            if known is None:
                # The first process to fail: its message is the one that is printed.
                self.cause = ""
        self._exit_code = getattr(error, "exit_code", 1)
        self._is_ending.set()
        if known is not None and (may_be_collective or not isinstance(error, SvdctlError)):
            return TrainingError(known) if known else EndedElsewhere(1)
        message = str(error) if isinstance(error, SvdctlError) else None
        if isinstance(error, KeyboardInterrupt):
            message = "interrupted"
        self._send_all({"end": "failed", "said": message})
        return error if self.rank == 0 or message is None else EndedElsewhere(1)

    def _send_all(self, message: dict[str, Any]) -> None:
        """Send a message to all connected processes; those that are gone are skipped."""
        for peer in self._peers.values():
            with suppress(OSError):
                _send(peer, message)

    def _watch(self, rank: int, peer: socket.socket) -> None:
        """Read a connection until the process at its end has finished, or has died or failed."""
        message = _read_line(peer)
        if message.get("end") != "done":
            with self._one_ends:  # never given back: the process ends in it
                self._end_process(rank, message)

    def _end_process(self, rank: int, message: dict[str, Any]) -> None:
        """End this process after another one has ended early; rank 0 informs all others.

        The main thread has `GRACE` seconds to end by itself; then this thread prints the cause and ends the process.

        Args:
            rank: of the process that ended early.
            message: its last one; empty if the connection was closed without one.
        """
        died = f"process {rank} of {self.world} was lost, killed or cut off; the run has ended: {self.advice()}"
        if "end" not in message:
            cause = died if self.rank in (0, 1) else ""
        elif self.rank == 0 and message.get("said"):
            cause = f"process {rank} of {self.world}: {message['said']}"
        elif self.rank == 0:
            cause = f"process {rank} of {self.world} failed, as it says above; the run has ended: {self.advice()}"
        else:
            cause = ""
        with self._lock:
            is_first = self.cause is None
            if is_first:
                self.cause = cause
        self._failure_known.set()
        if self.rank == 0:
            self._send_all({"end": "failed"})
        if self._is_ending.wait(GRACE):
            # The interpreter's exit handlers may wait in a collective operation too.
            time.sleep(GRACE)
        elif is_first and cause:
            show_cursor = "\x1b[?25h" if sys.stderr is not None and sys.stderr.isatty() else ""
            print_line(f"{show_cursor}svdctl: {printable(cause)}", sys.stderr)
        for child in self.children:
            child.kill()
        os._exit(self._exit_code)


def _send(peer: socket.socket, message: dict[str, Any]) -> None:
    """Send a message as one line of JSON."""
    peer.sendall(json.dumps(message).encode() + b"\n")


def _read_line(peer: socket.socket) -> dict[str, Any]:
    """Return the next message; empty at the end of the connection, and for a line that is no message."""
    line = bytearray()
    try:
        while not line.endswith(b"\n"):
            byte = peer.recv(1)
            if not byte or len(line) > 100_000:
                return {}
            line += byte
        found = json.loads(line)
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


@contextmanager
def end_together(fabric: Fabric, advice: Callable[[], str]) -> Iterator[None]:
    """Run the body in all processes; when one of them dies or fails, end the others and print the cause once.

    Args:
        fabric: the processes, launched.
        advice: returns what the user should do next; the last words of the error message.

    Raises:
        TrainingError: another process has died; raised in the process that prints the cause.
        EndedElsewhere: another process has died or failed; raised in all other processes.
    """
    if fabric.world_size == 1:
        yield
        return
    started = getattr(fabric.strategy.launcher, "procs", [])
    children = list(started)
    # Lightning watches this list, and would kill this process before the cause is printed: leave it nothing to watch.
    started.clear()
    detector = FailureDetector(fabric.global_rank, fabric.world_size, children, fabric.broadcast, advice)
    try:
        yield
    except BaseException as error:
        ending = detector.report_failure(error)
        _wait_for_children(children, GRACE / 2)
        if ending is error:
            raise
        raise ending from error
    detector.finish()
    _wait_for_children(children, _TIMEOUT)
    dist.destroy_process_group()


def _wait_for_children(children: list["subprocess.Popen[Any]"], seconds: float) -> None:
    """Wait up to `seconds` for the child processes to end, and kill those that have not."""
    deadline = time.monotonic() + seconds
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
