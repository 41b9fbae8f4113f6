"""Networks made by name: torchvision's, timm's, and those of users' factories; weights are drawn, none downloaded."""

import importlib
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized

from svdctl.errors import ShapeError, UsageError, first_line
from svdctl.layers.layer_ops import ConvFactory, find_ops
from svdctl.models.external_architecture import FORMS
from svdctl.plugins import current_folder_searched, import_file, is_factory

AUXILIARY = {"googlenet": ("aux1.", "aux2."), "inception_v3": ("AuxLogits.",)}
"""Networks of torchvision that have further heads in training, and how names of those heads begin."""


def make_network(
    network: str, *, classes: int | None = None, image_size: int | None = None, auxiliary: bool = False
) -> nn.Module:
    """Return a network by name, its weights drawn from torch's global random stream, and none downloaded.

    Args:
        network: `torchvision:NAME`, `timm:NAME`, or `module:factory`, whose module is imported.
        classes: width of the output, given to a factory that takes `num_classes`; None: the network's own.
        image_size: side of the images, for networks of one image size.
        auxiliary: with the further heads that a network of torchvision has in training.

    Raises:
        UsageError: no such library, module, name or network, or a factory that fails or makes no network.
    """
    library, _, name = network.rpartition(":")
    if not library or not name:
        raise UsageError(f"`model = {network}`: `model` is {FORMS}")
    wanted: dict[str, Any] = {} if classes is None else {"num_classes": classes}
    if is_factory(network):
        _refuse_image_size(network, image_size)
        return _of_factory(library, name, wanted)
    make = _torchvision if library == "torchvision" else _timm
    try:
        return make(name, wanted, image_size, auxiliary)
    except UsageError:
        raise
    except Exception as error:
        # Which sizes and widths a network can be made for is up to the library.
        raise UsageError(f"`model = {network}` failed: {type(error).__name__}: {first_line(error)}") from error


def own_normalization(network: str) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return means and standard deviations of the pixels on which a library's network was trained.

    Raises:
        UsageError: there is no such network.
    """
    library, _, name = network.rpartition(":")
    if library == "timm":
        _require_known(name, _timm_module().list_models(), "timm")
        found = _timm_module().get_pretrained_cfg(name)
        return (tuple(found.mean), tuple(found.std)) if found is not None else IMAGENET
    from torchvision import models

    _require_known(name, models.list_models(module=models), "torchvision")
    if name in AUXILIARY:
        # Their published weights expect what `transform_input` makes of ImageNet's normalisation.
        return (0.5,) * 3, (0.5,) * 3
    transforms = models.get_model_weights(name).DEFAULT.transforms()
    return tuple(transforms.mean), tuple(transforms.std)


IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Means and standard deviations of ImageNet's pixels."""


def _torchvision(name: str, wanted: dict[str, Any], image_size: int | None, auxiliary: bool) -> nn.Module:
    from torchvision import models

    # A training is of classifiers; an analysis is of any network.
    known = models.list_models(module=models) if wanted and not auxiliary else models.list_models()
    _require_known(name, known, "torchvision")
    signature = inspect.signature(models.get_model_builder(name)).parameters
    options = {option: None for option in ("weights", "weights_backbone") if option in signature} | wanted
    if name in AUXILIARY:
        # The default start is to change, which it warns of.
        options |= {"init_weights": True, **({} if auxiliary else {"aux_logits": False})}
    if image_size is not None:
        if not name.startswith("vit_"):
            _refuse_image_size(f"torchvision:{name}", image_size)
        options["image_size"] = image_size
    return models.get_model(name, **options)


def _timm(name: str, wanted: dict[str, Any], image_size: int | None, auxiliary: bool) -> nn.Module:
    timm = _timm_module()
    _require_known(name, timm.list_models(), "timm")
    options = wanted if image_size is None else {**wanted, "img_size": image_size}
    try:
        return timm.create_model(name, pretrained=False, **options)
    except TypeError as error:
        if "img_size" in str(error):
            _refuse_image_size(f"timm:{name}", image_size)
        raise


def _timm_module() -> Any:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise UsageError("networks of timm need the package timm, which is not installed: pip install timm") from error
    return timm


def _require_known(name: str, known: list[str], library: str) -> None:
    if name in known:
        return
    near = get_close_matches(name, known, 3, 0.4)
    raise UsageError(f"{library} has no network {name!r}; the nearest are {', '.join(near) or 'none'}")


def _refuse_image_size(network: str, image_size: int | None) -> None:
    if image_size is not None:
        raise UsageError(f"`model.image_size = {image_size}`: {network} is made for no size of images; leave it out")


def _of_factory(module: str, name: str, wanted: dict[str, Any]) -> nn.Module:
    try:
        # Of a single file the folder is not searched.
        with nullcontext() if module.endswith(".py") else current_folder_searched(module):
            made = _called(_found(module, name), wanted)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        # Whatever the user's own code raises is told as theirs; scripts without a guard end the program.
        raise UsageError(f"`model = {module}:{name}` failed: {type(error).__name__}: {first_line(error)}") from error
    if not isinstance(made, nn.Module):
        raise UsageError(f"`model = {module}:{name}` made a {type(made).__name__}, not a torch.nn.Module")
    if any(map(is_lazy, (*made.parameters(), *made.buffers()))):
        raise UsageError(f"`model = {module}:{name}` has layers of no width yet, as LazyLinear; give them their widths")
    return made


def _called(factory: Any, wanted: dict[str, Any]) -> object:
    """Return what a factory makes, with those of the arguments that it takes by name; a network is what it is."""
    if isinstance(factory, nn.Module) or not callable(factory):
        return factory
    try:
        known = set(inspect.signature(factory).parameters)
    except (TypeError, ValueError):  # of functions that are not Python's
        known = set()
    return factory(**{name: value for name, value in wanted.items() if name in known})


def _found(module: str, name: str) -> object:
    try:
        found: object = import_file(Path(module)) if module.endswith(".py") else importlib.import_module(module)
    except ModuleNotFoundError as error:
        lacking = error.name or module
        if module == lacking or module.startswith(f"{lacking}."):
            raise UsageError(
                f"`model = {module}:{name}`: there is no module {lacking!r} here; `model` is {FORMS}"
            ) from error
        raise UsageError(f"`model = {module}:{name}`: it imports {lacking!r}, which is not installed") from error
    for part in name.split("."):
        if not hasattr(found, part):
            near = get_close_matches(part, dir(found), 3) or [known for known in dir(found) if known[0] != "_"][:5]
            raise UsageError(f"`model = {module}:{name}`: no {part!r} there; it has {', '.join(near) or 'nothing'}")
        found = getattr(found, part)
    return found


def replace_convolutions_(model: nn.Module, *, conv: ConvFactory, first: ConvFactory) -> None:
    """Put layers of one kind into the places of a network's convolutions, whatever stands for torch's own excepted.

    Grouped convolutions, classes derived from torch's, parametrised ones, those that the layers cannot stand for, and
    those that are no wider than the layers' rank stay as they are. A convolution in several places is replaced by one
    layer in all of them.

    Args:
        model: changed in place.
        conv: makes the layers.
        first: makes the first one.
    """
    made: dict[nn.Module, nn.Module | None] = {}
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(module, nn.Conv2d):
            continue
        if module not in made:
            made[module] = _layer_for(module, conv if made else first)
        layer = made[module]
        if layer is not None:
            model.set_submodule(name, layer)


def _layer_for(conv: nn.Conv2d, make: ConvFactory) -> nn.Module | None:
    """Return the layer for the place of a convolution; None: it stays."""
    if make is nn.Conv2d or type(conv) is not nn.Conv2d or is_parametrized(conv) or conv._forward_pre_hooks:
        return None
    if conv.groups != 1 or isinstance(conv.padding, str) or conv.padding_mode != "zeros":
        return None
    settings: dict[str, Any] = {
        name: _one(getattr(conv, name)) for name in ("kernel_size", "stride", "padding", "dilation")
    }
    if settings["dilation"] == 1:
        # Not every kind of layer knows it.
        del settings["dilation"]
    try:
        with conv.weight.device:
            layer = make(conv.in_channels, conv.out_channels, bias=conv.bias is not None, **settings)
    except (ShapeError, TypeError):
        return None
    ops = find_ops(layer)
    is_whole = ops is not None and ops.rank(layer) == (conv.in_channels, conv.out_channels)
    return None if is_whole else layer.train(conv.training)


def _one(numbers: tuple[int, ...]) -> Any:
    """Return one number for all axes where there is one."""
    return numbers[0] if len(set(numbers)) == 1 else numbers


@contextmanager
def without_numbers() -> Iterator[None]:
    """Make networks inside whose parameters have shapes and no numbers, as on the device `meta`.

    Unlike under `torch.device("meta")`, tensors that a network computes its settings from keep their numbers.
    """
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), requires_grad=parameter.requires_grad)
        register(module, name, parameter)

    patched: Callable[..., None] = on_meta
    nn.Module.register_parameter = patched  # type: ignore[method-assign]
    try:
        yield
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
