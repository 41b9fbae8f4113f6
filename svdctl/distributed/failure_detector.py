"""End all processes of a run when one of them dies or fails, and print the cause once.

Every process keeps a TCP connection to rank 0. The kernel closes it when a process dies, whatever the cause, so that no
heartbeat is needed and a busy process is never mistaken for a dead one; TCP's keepalive detects a machine that is gone.
A process that waits in a collective operation, which NCCL lets wait for many minutes, is ended by a background thread
that reads a connection.

A process that is stopped (SIGSTOP, a debugger) keeps its connection. Nothing is done about it until a stop of the run
is requested: then each process must answer the others, from a thread that computations do not block.

Rank 0 prints the cause; rank 1 does when rank 0 is the process that died.
"""

import json
import os
import secrets
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist

from svdctl.distributed.start_watch import WatchedFabric
from svdctl.errors import EndedElsewhere, SvdctlError, TrainingError
from svdctl.utils.signals import end_process, requests_noticed

GRACE = 12.0
"""Seconds that a process has to end by itself, once another one has died."""
_DETECTION_SECONDS = 4.0
"""Seconds to wait, after a collective operation has failed, for the news that another process has died."""
ANSWER_SECONDS = 15
"""Seconds that a process may leave others without an answer after a stop was requested."""
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
        self._exit_code, self._grace = 1, GRACE
        self._sending = threading.Lock()
        self._finished: set[int] = set()
        """Ranks that have ended well."""
        self._silent: dict[int, int] | None = None
        """By rank: how many questions in a row are without an answer; None: nobody is asked."""
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
        if self.world == 1:
            return peers
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

    def require_answers(self) -> None:
        """End the run when another process does not answer for `ANSWER_SECONDS`: called when a stop was requested."""
        with self._lock:
            if self._silent is not None:
                return
            self._silent = dict.fromkeys(self._peers, 0)
        if self.rank != 0:
            # It has the connections to all others.
            self._send_all({"stop": True})
        threading.Thread(target=self._ask, name="questions", daemon=True).start()

    def _ask(self) -> None:
        """Ask all connected processes once a second; end the run when one is silent for too long."""
        silent = self._silent
        assert silent is not None
        while not self._is_ending.is_set():
            self._send_all({"ask": True})
            # Rounds and not a clock: this process may itself be stopped for a while.
            time.sleep(1)
            for rank in silent:
                silent[rank] = 0 if rank in self._finished else silent[rank] + 1
                if silent[rank] > ANSWER_SECONDS:
                    with self._one_ends:
                        self._end_now(
                            f"process {rank} of {self.world} has not answered for {ANSWER_SECONDS} s, stopped or "
                            f"frozen, while the run was to stop; the run has ended without it: {self.advice()}",
                            1,
                        )

    def end_at_once(self) -> None:
        """End this process and those that it started after a second request to stop."""
        self._end_now(f"interrupted at once by a second signal; {self.advice()}", 130)

    def _end_now(self, cause: str, code: int) -> None:
        self._send_all({"end": "failed"})
        for child in self.children:
            child.kill()
        end_process(cause, code)

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
        if isinstance(error, KeyboardInterrupt):
            self._grace = 1.0
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
            self._send(peer, message)

    def _send(self, peer: socket.socket, message: dict[str, Any]) -> None:
        with self._sending, suppress(OSError):
            _send(peer, message)

    def _watch(self, rank: int, peer: socket.socket) -> None:
        """Read a connection until the process at its end has finished, or has died or failed."""
        while (message := _read_line(peer)) and "end" not in message:
            if "ask" in message:
                self._send(peer, {"answer": True})
            elif "stop" in message:
                self.require_answers()
            elif self._silent is not None:
                self._silent[rank] = 0
        if message.get("end") == "done":
            self._finished.add(rank)
        else:
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
            time.sleep(self._grace)
            cause = ""
        for child in self.children:
            child.kill()
        end_process(cause if is_first else "", self._exit_code)


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
def end_together(fabric: WatchedFabric, advice: Callable[[], str]) -> Iterator[FailureDetector]:
    """Run the body in all processes; when one of them dies or fails, end the others and print the cause once.

    Args:
        fabric: the processes, launched.
        advice: returns what the user should do next; the last words of the error message.

    Yields:
        What tells the processes of a request to stop.

    Raises:
        TrainingError: another process has died; raised in the process that prints the cause.
        EndedElsewhere: another process has died or failed; raised in all other processes.
    """
    watch = fabric.start_watch
    children = [] if watch is None else watch.children
    try:
        detector = FailureDetector(fabric.global_rank, fabric.world_size, children, fabric.broadcast, advice)
    except BaseException as error:
        if watch is not None:
            watch.fail(error)
        raise
    if watch is not None:
        watch.stop()
    if fabric.world_size == 1:
        yield detector
        return
    try:
        with requests_noticed(detector.require_answers, detector.end_at_once):
            yield detector
    except BaseException as error:
        ending = detector.report_failure(error)
        _wait_for_children(children, 1 if isinstance(error, KeyboardInterrupt) else GRACE / 2)
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
