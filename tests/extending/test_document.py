"""`docs/extending.md` shows the files of this folder as they are."""

import re
from pathlib import Path

HERE = Path(__file__).parent
TEXT = (HERE.parents[1] / "docs" / "extending.md").read_text(encoding="utf-8")


def test_each_file_is_shown_as_it_is() -> None:
    shown = dict(re.findall(r"`tests/extending/(\w+\.py)`:\n\n```python\n(.*?)```\n", TEXT, re.DOTALL))
    files = {path.name: path.read_text(encoding="utf-8") for path in HERE.glob("*.py") if path.name[:5] != "test_"}
    assert shown == files
