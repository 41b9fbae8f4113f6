"""What a user is told who has not installed the package of an integration, and that nothing imports one unasked."""

import subprocess
import sys

import pytest

HIDDEN = """
import sys

class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lightning", "pytorch_lightning", "transformers", "accelerate"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, Hide())
import svdctl
for name in svdctl.integrations.__all__:
    try:
        getattr(svdctl.integrations, name)
    except ImportError as error:
        assert isinstance(error, svdctl.errors.UsageError)
        print(error)
"""


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout


def test_a_sentence_says_what_to_install() -> None:
    lines = run(HIDDEN).splitlines()
    assert len(lines) == 3
    assert "pip install 'svdctl[lightning]'" in lines[0]
    assert "pip install 'pytorch-lightning'" in lines[1]
    assert "pip install 'svdctl[transformers]'" in lines[2]


@pytest.mark.parametrize("code", ["import svdctl", "import svdctl; svdctl.Controller"])
def test_no_integration_is_imported_unasked(code: str) -> None:
    assert (
        run(f"{code}; import sys; print([name for name in sys.modules if name.startswith('svdctl.integrations')])")
        == "[]\n"
    )
