"""The reference of the library: every public name, from its docstring, by mkdocstrings."""

import svdctl

GROUPS: dict[str, tuple[str, ...]] = {
    "Measure": ("singular_values", "spectral_norm_bound", "spectrum", "lipschitz_bound", "Convolution"),
    "Change weights": ("clip_", "divide_"),
    "Control during training": ("Controller",),
    "Layers": (
        "TTConv1d",
        "TTConv2d",
        "TTConv3d",
        "SOC",
        "SOTT",
        "MinMax",
        "tensorize_",
        "untensorize_",
        "orthogonalize_",
    ),
    "Files": ("load", "save", "to_plain"),
    "Variants of your own": (
        *("register_layer", "LayerOps", "register_control", "ControlMethod", "register_data", "register_metric"),
        *("register_logger", "register_architecture", "register_loss"),
    ),
}
"""Names of `svdctl`, by heading; those of no group stand at the end."""
FURTHER = {
    "Results": (
        "svdctl.spectral.bounds.Bracket",
        "svdctl.analysis.network_spectrum.NetworkSpectrum",
        "svdctl.analysis.layer_spectrum.LayerSpectrum",
        "svdctl.control.control_report.Report",
        "svdctl.control.control_report.LayerReport",
    ),
    "Parametrizations": (
        "svdctl.parametrize.spectral_norm",
        "svdctl.parametrize.orthogonal",
        "svdctl.parametrize.remove_parametrizations",
    ),
    "Lightning and transformers": (
        "svdctl.integrations.lightning.Control",
        "svdctl.integrations.transformers.Control",
    ),
    "Networks": ("svdctl.models.wrn.WideResNet", "svdctl.models.vgg.Vgg19", "svdctl.models.lipconvnet.LipConvNet"),
    "Errors": (
        "svdctl.errors.SvdctlError",
        "svdctl.errors.UsageError",
        "svdctl.errors.ShapeError",
        "svdctl.errors.CheckpointError",
        "svdctl.errors.DataError",
        "svdctl.errors.TrainingError",
        "svdctl.errors.MissingExtraError",
    ),
}
"""Public names of the modules below."""


def groups() -> dict[str, tuple[str, ...]]:
    """Return all public names, with their modules, by heading."""
    named = {name for names in GROUPS.values() for name in names}
    others = tuple(name for name in svdctl.__all__ if name not in named and name in svdctl._HOME)
    own = GROUPS | ({"Others": others} if others else {})
    return {title: tuple(f"svdctl.{name}" for name in names) for title, names in own.items()} | FURTHER


def python_page() -> str:
    """Return the page, in Markdown for mkdocstrings."""
    lines = [
        "# Python",
        "",
        "Made from the docstrings of `import svdctl`; `help(svdctl.clip_)` prints the same. The guide, with examples "
        "in order: [svdctl in your own training](../library.md).",
        "",
    ]
    for title, names in groups().items():
        lines += [f"## {title}", ""]
        for name in names:
            lines += [f"::: {name}", "    options:", "      heading_level: 3", ""]
    return "\n".join(lines)
