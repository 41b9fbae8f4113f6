"""End all processes of a run when one of them ends while they start.

Until they are connected, no process would notice: one waits for the others for half an hour, or is killed by Lightning
without a word. The first process of a machine watches those that it started, and they watch it. What other launchers
start (torchrun, srun), they watch themselves.
"""

import os
import subprocess
import threading
from typing import Any

from lightning_fabric import Fabric

from svdctl.errors import SvdctlError
from svdctl.utils.signals import end_process

_LAUNCHER = "SVDCTL_LAUNCHER"
"""Environment variable: the number of the process that starts others, for these."""
_POLL_SECONDS = 0.2
_DETECTION_SECONDS = 4.0
"""Seconds to wait, after starting has failed, for the news that another process has ended."""


class WatchedFabric(Fabric):
    """The processes of a run, which end together while they start."""

    start_watch: "StartWatch | None" = None

    def launch(self, *given: Any, **named: Any) -> Any:
        """Start the processes, as `Fabric.launch` does."""
        if getattr(self.strategy, "num_processes", 1) == 1:
            return super().launch(*given, **named)
        self.start_watch = watch = StartWatch(self)
        try:
            return super().launch(*given, **named)
        except BaseException as error:
            watch.fail(error)
            raise
        finally:
            for name in watch.variables:
                os.environ.pop(name, None)


class StartWatch:
    """Watch, in a thread, the processes that this one starts, or the one that started it, until `stop`.

    Args:
        fabric: the processes, not launched.
    """

    def __init__(self, fabric: Fabric) -> None:
        strategy: Any = fabric.strategy
        self.starts = not strategy.cluster_environment.creates_processes_externally
        """Whether this process starts others."""
        self.children: list[subprocess.Popen[Any]] = []
        """What it has started."""
        self._world = strategy.num_processes * strategy.num_nodes
        self._local_rank: int = strategy.cluster_environment.local_rank()
        self._first: int = strategy.cluster_environment.node_rank() * strategy.num_processes
        self._started: list[subprocess.Popen[Any]] = getattr(strategy.launcher, "procs", [])
        self._others: int = strategy.num_processes - 1 if self.starts else 0
        self._parent = None if self.starts else os.environ.get(_LAUNCHER)
        self.variables = {}
        """Environment variables for the children."""
        if self.starts:
            # torch would print stacks about a connection that is lost, before the sentence.
            quiet = {} if "TORCH_CPP_LOG_LEVEL" in os.environ else {"TORCH_CPP_LOG_LEVEL": "ERROR"}
            self.variables = {_LAUNCHER: str(os.getpid()), **quiet}
            os.environ.update(self.variables)
        self._over, self._lock = threading.Event(), threading.Lock()
        self._check()
        threading.Thread(target=self._watch, name="start watch", daemon=True).start()

    def stop(self) -> None:
        """End the watch: the processes are connected."""
        self._over.set()
        self._take_children()

    def fail(self, error: BaseException) -> None:
        """End the children after an error of this process, unless the end of another one caused it: then end all."""
        if isinstance(error, RuntimeError) and not isinstance(error, SvdctlError):
            # What a collective operation raises when a process is gone.
            self._over.wait(_DETECTION_SECONDS)
        self.stop()
        for child in self.children:
            child.kill()

    def _take_children(self) -> None:
        """Take the started processes from Lightning, which would kill this one when one of them ends."""
        with self._lock:
            if len(self._started) == self._others:
                self.children += self._started
                self._started.clear()
                self._others = 0

    def _watch(self) -> None:
        while not self._over.wait(_POLL_SECONDS):
            self._take_children()
            self._check()

    def _check(self) -> None:
        """End all processes where one that is watched has ended."""
        if self._parent is not None and str(os.getppid()) != self._parent:
            self._end(0, "was lost, killed or cut off", says_it=self._local_rank == 1)
        for place, child in enumerate(self.children):
            if (code := child.poll()) is not None and not self._over.is_set():
                how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
                self._end(place + 1, how, says_it=True)

    def _end(self, local_rank: int, how: str, *, says_it: bool) -> None:
        for child in self.children:
            child.kill()
        cause = (
            f"process {self._first + local_rank} of {self._world} {how} while the processes started; nothing was "
            "begun, run the command again"
        )
        end_process(cause if says_it else "", 1)
