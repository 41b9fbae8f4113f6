"""No control: singular values are left alone."""

from typing import Literal

from svdctl.config.base import Config
from svdctl.control.control_method import ControlMethod, register_control


class NoControl(Config):
    """Singular values are left alone."""

    kind: Literal["none"] = "none"


@register_control
class NoControlMethod(ControlMethod):
    """Has no maximum, so that no layer is under it."""

    kind = "none"
    config = NoControl
