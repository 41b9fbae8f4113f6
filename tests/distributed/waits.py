"""Two processes of which one fails or both do: `python waits.py HOW`, which lightning starts a second time."""

import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import nullcontext

import torch

from svdctl.cli.messages import report
from svdctl.distributed import failure_detector
from svdctl.distributed.start_watch import WatchedFabric
from svdctl.errors import DataError
from svdctl.utils.signals import stop_on_signal


def starting(how: str) -> None:
    """What the second process does before it joins the first."""
    first = os.getppid()
    match how:
        case "second killed, starting":
            os.kill(os.getpid(), signal.SIGKILL)
        case "second fails, starting":
            raise DataError("the second has no data")
        case "first killed, starting":
            os.kill(first, signal.SIGKILL)
        case "first terminated, starting":
            os.kill(first, signal.SIGTERM)
        case "first killed, second joins":
            # Meanwhile the second waits for it where nothing of Python runs.
            os.kill(first, signal.SIGSTOP)
            threading.Timer(2, os.kill, (first, signal.SIGKILL)).start()


def stopped(how: str, fabric: WatchedFabric, detector: failure_detector.FailureDetector) -> None:
    """One process is stopped, the other one waits for it and is told to end, once or twice."""
    who, _, told = how.partition(" stopped, ")
    if fabric.is_global_zero == (who == "first"):
        if who == "first":
            # The pipes of both close when the last one is gone.
            subprocess.Popen(["sh", "-c", f"sleep 12; kill -CONT {os.getpid()}"], stdout=subprocess.DEVNULL)
        os.kill(os.getpid(), signal.SIGSTOP)
        time.sleep(100)
    number = signal.SIGINT if "Ctrl-C" in told else signal.SIGTERM
    for place in range(1 + ("twice" in told)):
        threading.Timer(1 + place, os.kill, (os.getpid(), number)).start()
    handled = (
        stop_on_signal(detector.require_answers, detector.end_at_once) if number == signal.SIGTERM else nullcontext()
    )
    with handled:
        while True:
            fabric.all_reduce(torch.zeros(1))


def main(how: str) -> None:
    failure_detector.GRACE, failure_detector.ANSWER_SECONDS = 5.0, 3
    if "LOCAL_RANK" in os.environ:
        starting(how)
    fabric = WatchedFabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    with failure_detector.end_together(fabric, lambda: "this is the advice") as detector:
        fabric.barrier()
        first = fabric.is_global_zero
        if "stopped" in how:
            stopped(how, fabric, detector)
        match how:
            case "second killed, first busy":
                if first:
                    time.sleep(100)
                os.kill(os.getpid(), signal.SIGKILL)
            case "first killed, second busy":
                if not first:
                    time.sleep(100)
                os.kill(os.getpid(), signal.SIGKILL)
            case "second killed, first sends":
                if not first:
                    os.kill(os.getpid(), signal.SIGKILL)
                while True:
                    fabric.all_reduce(torch.zeros(1))
            case "second fails":
                if not first:
                    raise DataError("the second has no data")
                fabric.barrier()
            case "first fails":
                if first:
                    raise DataError("the first has no data")
                fabric.barrier()
            case "both fail":
                raise DataError("nobody has data")
            case "second breaks":
                if not first:
                    raise KeyError("surprise")
                fabric.barrier()
            case "second interrupted":
                if not first:
                    raise KeyboardInterrupt
                fabric.barrier()
            case "fine, the first takes longer":
                if first:
                    time.sleep(4)


if __name__ == "__main__":
    try:
        main(sys.argv[1])
    except Exception as error:
        sys.exit(report(error, {}, debug=False))
