"""A worker process: a job on stdin, its outcome on stdout. Importing this loads nothing heavy.

python -m svdctl.reproduce.worker [PARENT] < job.json
"""

import json
import os
import signal
import sys
import threading
import time

from svdctl.plugins import grant_factory, is_factory, load_plugins
from svdctl.utils.signals import terminated_as_interrupt


def main() -> None:
    """Execute one job. A process whose parent is gone stops as on a signal, with its state saved.

    The parent says its number: it may be gone before this process can ask.
    """
    text = sys.stdin.read()
    parent = int(sys.argv[1]) if len(sys.argv) > 1 else os.getppid()
    threading.Thread(target=_watch_parent, args=(parent,), daemon=True).start()
    try:
        with terminated_as_interrupt():
            # The last line: libraries may print before it.
            print("\n" + work(text), flush=True)
    except KeyboardInterrupt:  # before the job was begun: there is no outcome
        os.kill(os.getpid(), signal.SIGTERM)


def work(text: str) -> str:
    """Return the outcome, in JSON, of a job in JSON; plugins and factory are those that a user named."""
    from svdctl.reproduce.execute import execute  # after the environment is known
    from svdctl.reproduce.run_store import JOB, OUTCOME, Outcome

    config = json.loads(text)["config"]
    load_plugins(config["plugins"])
    network = config["model"].get("network")
    if isinstance(network, str) and is_factory(network):
        grant_factory(network)
    job = JOB.validate_json(text)
    try:
        outcome = execute(job)
    except KeyboardInterrupt:
        outcome = Outcome(job.id, "interrupted")
    return OUTCOME.dump_json(outcome).decode()


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(60)
    os._exit(1)


if __name__ == "__main__":
    main()
