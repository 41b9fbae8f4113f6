"""The end of one process is the end of all, said once.

Every process holds a connection to the first one as long as it lives. The kernel closes it when a process dies, however
that happens, so that nothing has to be asked at intervals and no busy process is taken for a dead one; TCP's keepalive
tells of a machine that is gone. What waits in a collective operation, which NCCL lets wait for many minutes, is ended
by the thread that listens.

Who speaks: the first process; when it is the one that was lost, the second.
"""

import json
import os
import secrets
import selectors
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

GRACE = 12.0
"""Seconds in which a process may end by itself, once another one is lost."""
_NOTICE = 4.0
"""Seconds within which a failed message is explained by a process that was lost, if it is."""
_JOIN = 60.0


class Lifeline:
    """This process's connection to the others, and what it knows of them.

    Args:
        rank, world: of this process.
        children: processes that this one started.
        exchange: gives every process what the first one puts in.
        advice: what to do after a loss, to end its sentence.
    """

    def __init__(
        self,
        rank: int,
        world: int,
        children: list["subprocess.Popen[Any]"],
        exchange: Callable[[Any], Any],
        advice: Callable[[], str],
    ) -> None:
        self.rank, self.world, self.children, self.advice = rank, world, children, advice
        self.trouble: str | None = None
        """Why this run ends early, once that is known; empty when another process says it."""
        self._known, self._gone = threading.Event(), threading.Event()
        self._lock = threading.Lock()
        self._done: set[int] = set()
        self._code = 1
        self._peers = self._meet(exchange)
        self._listener = threading.Thread(target=self._listen, name="lifeline", daemon=True)
        self._listener.start()

    def _meet(self, exchange: Callable[[Any], Any]) -> dict[int, socket.socket]:
        """The sockets to the others, by rank: of all of them at the first process, of that one elsewhere."""
        peers: dict[int, socket.socket] = {}
        if self.rank == 0:
            families = {found[0] for found in socket.getaddrinfo(os.environ["MASTER_ADDR"], None)}
            family = socket.AF_INET if socket.AF_INET in families else socket.AF_INET6
            with socket.create_server(("", 0), family=family, backlog=self.world) as server:
                server.settimeout(_JOIN)
                _, token = exchange((server.getsockname()[1], secrets.token_hex(16)))
                while len(peers) < self.world - 1:
                    found, _ = server.accept()
                    found.settimeout(5)
                    greeting = _read_line(found)
                    if greeting.get("token") == token:
                        peers[greeting["rank"]] = found
                    else:
                        found.close()
        else:
            port, token = exchange(None)
            peers[0] = socket.create_connection((os.environ["MASTER_ADDR"], port), timeout=_JOIN)
            _send(peers[0], {"rank": self.rank, "token": token})
        for peer in peers.values():
            peer.settimeout(None)
            peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 3), ("TCP_KEEPCNT", 3)):
                if hasattr(socket, option):
                    peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)
        return peers

    def leave(self) -> None:
        """This process has done its part; returns when the first one, or at that one all others, have too."""
        self._tell({"end": "done"})
        self._listener.join()

    def fail(self, error: BaseException) -> BaseException:
        """What this process ends with after an error of its own, or one that another process's end has caused.

        Returns:
            The exception to raise; `EndedElsewhere` where another process says what happened.
        """
        communication = isinstance(error, RuntimeError) and not isinstance(error, SvdctlError | torch.OutOfMemoryError)
        if communication:
            self._known.wait(_NOTICE)
        with self._lock:
            known = self.trouble
            if known is None:
                # The first to fail: the others are told, and this sentence is the one.
                self.trouble = ""
        self._code = getattr(error, "exit_code", 1)
        self._gone.set()
        if known is not None and (communication or not isinstance(error, SvdctlError)):
            return TrainingError(known) if known else EndedElsewhere(1)
        said = str(error) if isinstance(error, SvdctlError) else None
        if isinstance(error, KeyboardInterrupt):
            said = "interrupted"
        self._tell({"end": "failed", "said": said})
        return error if self.rank == 0 or said is None else EndedElsewhere(1)

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self._peers.values():
            with suppress(OSError):
                _send(peer, message)

    def _listen(self) -> None:
        """Until all others are done, or one is lost."""
        with selectors.DefaultSelector() as selector:
            for rank, peer in self._peers.items():
                selector.register(peer, selectors.EVENT_READ, rank)
            while len(self._done) < len(self._peers):
                for key, _ in selector.select():
                    rank = key.data
                    message = _read_line(self._peers[rank])
                    if message.get("end") == "done":
                        self._done.add(rank)
                        selector.unregister(self._peers[rank])
                    else:
                        self._end(rank, message)
                        return

    def _end(self, rank: int, message: dict[str, Any]) -> None:
        """What follows from a process that ended early: the others hear of it, and this one has to go."""
        killed = f"process {rank} of {self.world} was lost, killed or cut off; the run has ended: {self.advice()}"
        if "end" not in message:
            trouble = killed if self.rank in (0, 1) else ""
        elif self.rank == 0 and message.get("said"):
            trouble = f"process {rank} of {self.world}: {message['said']}"
        elif self.rank == 0:
            trouble = f"process {rank} of {self.world} failed, as it says above; the run has ended: {self.advice()}"
        else:
            trouble = ""
        with self._lock:
            first = self.trouble is None
            if first:
                self.trouble = trouble
        self._known.set()
        if self.rank == 0:
            self._tell({"end": "failed"})
        if self._gone.wait(GRACE):
            # The way out of the interpreter may lead through a collective operation too.
            time.sleep(GRACE)
        elif first and trouble:
            show_cursor = "\x1b[?25h" if sys.stderr.isatty() else ""
            print(f"{show_cursor}svdctl: {trouble}", file=sys.stderr, flush=True)
        for child in self.children:
            child.kill()
        os._exit(self._code)


def _send(peer: socket.socket, message: dict[str, Any]) -> None:
    peer.sendall(json.dumps(message).encode() + b"\n")


def _read_line(peer: socket.socket) -> dict[str, Any]:
    """The next message; empty at the end of the connection, and for what is none."""
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
def together(fabric: Fabric, advice: Callable[[], str]) -> Iterator[None]:
    """Around all that the processes of a run do: the end of one is the end of all, said once.

    Args:
        fabric: the processes, launched.
        advice: what to do after a loss, to end its sentence.

    Raises:
        TrainingError: another process was lost; in the process that says so.
        EndedElsewhere: in those that do not.
    """
    if fabric.world_size == 1:
        yield
        return
    started = getattr(fabric.strategy.launcher, "procs", [])
    children = list(started)
    # lightning's own observer would kill this process too, before it could say why: it has nothing left to observe.
    started.clear()
    lifeline = Lifeline(fabric.global_rank, fabric.world_size, children, fabric.broadcast, advice)
    try:
        yield
    except BaseException as error:
        ending = lifeline.fail(error)
        _reap(children, GRACE / 2)
        if ending is error:
            raise
        raise ending from error
    lifeline.leave()
    _reap(children, _JOIN)
    dist.destroy_process_group()


def _reap(children: list["subprocess.Popen[Any]"], patience: float) -> None:
    """Wait for processes to end; those that do not are killed."""
    deadline = time.monotonic() + patience
    for child in children:
        try:
            child.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
