"""Two processes of which one fails or both do: `python waits.py HOW`, which lightning starts a second time."""

import os
import signal
import sys
import time

import torch
from lightning_fabric import Fabric

from svdctl.cli.messages import report
from svdctl.distributed import failure_detector
from svdctl.errors import DataError


def main(how: str) -> None:
    failure_detector.GRACE = 5.0
    fabric = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    fabric.launch()
    with failure_detector.end_together(fabric, lambda: "this is the advice"):
        fabric.barrier()
        first = fabric.is_global_zero
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
