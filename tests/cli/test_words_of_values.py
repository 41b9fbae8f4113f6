"""What a command says of a value that cannot be meant: what to write, in the words of its help."""

import pytest

from svdctl.cli.evaluation_flags import EVALUATION
from svdctl.cli.messages import with_flags
from svdctl.cli.options import flags_by_key
from svdctl.cli.training_flags import LIPCONV, TRAIN
from svdctl.config.control_config import NOT_CONTROLLED
from tests.cli.test_train_command import svdctl_exits


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("eval-robust --eps 8/0", "--eps (settings.autoattacks.eps): '8/0' is not valid; write 0.5 or 8/255"),
        ("eval-robust --eps 0,5", "--eps (settings.autoattacks.eps): '0,5' is not valid; write 0.5 or 8/255"),
        (
            "eval-robust --severities 3 9",
            "--severities (settings.cifar-c.severities, item 2): '9' is not valid; a number of at most 5 is wanted",
        ),
        ("train --clip-to 0", "--clip-to (control.max_sigma): 0.0 is not valid; a number above 0 is wanted"),
        ("train --dataset imagenet", "--dataset imagenet: write folder:PATH, the folder in which it was unpacked"),
        (
            "train --dataset Tiny-ImageNet",
            "--dataset Tiny-ImageNet: write folder:PATH, the folder in which it was unpacked",
        ),
    ],
)
def test_a_value_that_cannot_be_meant(capsys: pytest.CaptureFixture[str], line: str, said: str) -> None:
    assert svdctl_exits(*line.split()) == 2
    assert capsys.readouterr().err == f"svdctl: {said}\n"


def test_a_hint_has_the_words_of_the_help() -> None:
    for command in (TRAIN, LIPCONV):
        hint = with_flags(NOT_CONTROLLED, command.words)
        assert hint.endswith("(--clipping clip or --clipping divide-by-largest does)")
        assert "divide-by-largest" in command.flags["clipping"].choices
    assert with_flags("`layer.kind = soc`", LIPCONV.words) == "--conv-type skew"
    assert with_flags("`layer.kind = soc`", TRAIN.words) == "--new-layer soc"
    assert with_flags("`settings.cifar-c.severities.0`", flags_by_key(EVALUATION)) == "--severities"
