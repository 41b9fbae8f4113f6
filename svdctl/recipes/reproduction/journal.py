"""What was measured already, kept in a file until the whole is done, so that a measurement that was cut off goes on."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from svdctl.runfolder import write_text


class Journal:
    """Results by key, as JSON, bound to what they are results of.

    Args:
        path: the file; a file of anything else, or one that cannot be read, is begun anew.
        about: all that the results depend on.
    """

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path = path
        self._about = json.loads(json.dumps(about))
        self._results: dict[str, Any] = {}
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError):
            return
        if isinstance(kept, dict) and kept.get("about") == self._about and isinstance(kept.get("results"), dict):
            self._results = kept["results"]

    def __contains__(self, key: str) -> bool:
        return key in self._results

    def once(self, key: str, work: Callable[[], Any]) -> Any:
        """The result of the work, done now or earlier; it can be written as JSON."""
        if key not in self._results:
            self._results[key] = work()
            write_text(self.path, json.dumps({"about": self._about, "results": self._results}))
        return self._results[key]
