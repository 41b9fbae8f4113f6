"""Networks without svdctl: what they compute in evaluation mode, by torch's own modules and functions alone."""

import copy
import math
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import is_parametrized, type_before_parametrizations
from torch.utils._pytree import tree_leaves

from svdctl.control.layer_choice import unwrapped
from svdctl.errors import ShapeError, SvdctlError, first_line, is_out_of_memory
from svdctl.layers.layer_ops import LayerOps, known_class, ops_of, require_module
from svdctl.layers.shapes import spatial_size
from svdctl.layers.stored_weight import evaluation_mode, forwards_as, require_memory, tensor_of_own_class
from svdctl.spectral.exact_arithmetic import exact_products


@torch.no_grad()
@exact_products()
def to_plain(model: nn.Module, example: Tensor | tuple[Any, ...] | None = None) -> nn.Module:
    """Return what a network computes in evaluation mode, of torch's own modules and functions alone.

    TT layers become one convolution, or the three of their factors, whichever multiplies less; SOC and SOTT layers the
    chain of their series; MinMax and the normalisation of pixels plain operations; parametrised weights plain weights.
    Wrappers are taken off: torch.compile, DistributedDataParallel, DataParallel, AveragedModel, timm's ModelEma. The
    network is traced by `torch.fx`. One that cannot be is copied with its layers replaced, if no other module in it
    is svdctl's. What is returned needs no svdctl, not to be unpickled either, and can be exported by
    `torch.onnx.export(..., dynamo=True)`. Its parameters need no gradients, and share no memory with the network's.

    Args:
        model: any network; it stays as it is.
        example: an input of it, or a tuple of its inputs. By it, sizes of images are known, which tell the cheaper form
            of each TT layer, and errors are measured.

    Returns:
        A `torch.fx.GraphModule`, or the copy, in evaluation mode. Its `meta["svdctl"]` is a dictionary: `error`, the
        relative error of the outputs on the example in l2, and `layers`, that of each layer that was replaced on what
        it is given there, by name. Without an example each error is None.

    Raises:
        ShapeError: an example that the network does not take, a module with forward hooks, weights that are not there,
            a network that cannot be copied, or one that cannot be traced and holds another module of svdctl.

    >>> import torch
    >>> net = torch.nn.Sequential(svdctl.SOC(4, 8, 3), svdctl.MinMax(), svdctl.TTConv2d(8, 8, 3, rank=2))
    >>> plain = svdctl.to_plain(net, torch.randn(2, 4, 8, 8))
    >>> plain.meta["svdctl"]["error"] < 1e-5
    True
    >>> {type(module).__module__.partition(".")[0] for module in plain.modules()}
    {'torch'}
    """
    network = unwrapped(model)
    require_module(network)
    require_memory(network)
    if any(is_lazy(parameter) for parameter in network.parameters()):
        raise ShapeError("weights are not made before the first forward pass; run the network once first")
    outermost = model if isinstance(model, nn.Module) else network  # timm's first ModelEma is no module
    for name, module in outermost.named_modules():
        if module._forward_hooks or module._forward_pre_hooks:
            raise ShapeError(
                f"{name or 'the network'} ({type(module).__name__}) has forward hooks, which may change what it "
                "computes; remove them first (those of torch.nn.utils too, as by remove_weight_norm)"
            )
    inputs = example if isinstance(example, tuple) else (example,)
    layers = _replaceable(network)
    with evaluation_mode(network):
        outputs, made, errors = (None, {}, {}) if example is None else _observed(network, inputs, layers)
        for layer in layers.values():
            if layer not in made:
                made[layer] = ops_of(layer).plain(layer)
        plain = _traced(_copied(network, made))
    plain.requires_grad_(False)
    report = {
        "error": None if example is None else _relative_error(outputs, plain(*inputs)),
        "layers": {
            name.replace("_orig_mod.", ""): errors.get(layer)
            for name, layer in layers.items()
            if made[layer] is not None
        },
    }
    vars(plain).setdefault("meta", {})["svdctl"] = report
    if isinstance(plain, fx.GraphModule):
        _pickle_with_meta(plain)
    return plain


def _replaceable(model: nn.Module) -> dict[str, nn.Module]:
    """Return the layers that may have a plain form, by all their names, without those inside another one."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        known = known_class(module)
        if known is None or type(ops_of(module)).plain is LayerOps.plain:
            continue
        is_inner = any(not outer or name.startswith(f"{outer}.") for outer in found)
        if not is_inner and forwards_as(module, known) and tensor_of_own_class(module) is None:
            found[name] = module
    return found


def _observed(
    model: nn.Module, inputs: tuple[Any, ...], layers: dict[str, nn.Module]
) -> tuple[Any, dict[nn.Module, nn.Module | None], dict[nn.Module, float]]:
    """Return the network's outputs, the plain form of each layer that was reached, and its largest relative error."""
    made: dict[nn.Module, nn.Module | None] = {}
    errors: dict[nn.Module, float] = {}

    def compare(layer: nn.Module, given: tuple[Any, ...], named: dict[str, Any], output: Any) -> None:
        if layer not in made:
            made[layer] = ops_of(layer).plain(layer, spatial_size(layer, given, named))
        plain = made[layer]
        if plain is not None:
            errors[layer] = max(errors.get(layer, 0.0), _relative_error(output, plain.eval()(*given, **named)))

    with torch.compiler.set_stance("force_eager"), ExitStack() as stack:
        for layer in dict.fromkeys(layers.values()):
            handle = layer.register_forward_hook(compare, with_kwargs=True)
            stack.callback(handle.remove)
        try:
            outputs = model(*inputs)
        except (RuntimeError, ValueError, TypeError, IndexError, KeyError, AttributeError) as error:
            if isinstance(error, SvdctlError) or is_out_of_memory(error):
                raise
            given = ", ".join(
                f"a tensor of shape {tuple(each.shape)}" if isinstance(each, Tensor) else f"a {type(each).__name__}"
                for each in inputs
            )
            raise ShapeError(
                f"the network does not take the example, {given} ({first_line(error)}); give an input tensor, or a "
                "tuple of the network's inputs"
            ) from error
    return outputs, made, errors


def _copied(model: nn.Module, made: dict[nn.Module, nn.Module | None]) -> nn.Module:
    """Return a copy with the layers replaced and the weights that are made from others as they are now."""
    memo: dict[int, Any] = {id(layer): plain for layer, plain in made.items() if plain is not None}
    try:
        for module in reversed(list(model.modules())):
            if "_orig_mod" in module._modules:  # by torch.compile
                memo[id(module)] = copy.deepcopy(module.get_submodule("_orig_mod"), memo)
        copied: nn.Module = copy.deepcopy(model, memo)
    except Exception as error:  # whatever the network's own classes raise
        raise ShapeError(
            f"the network cannot be copied ({error}); run it once under torch.no_grad(), then try again"
        ) from error
    for module in list(copied.modules()):
        module.training = False
        if is_parametrized(module):
            values = {name: getattr(module, name) for name in module.parametrizations}  # type: ignore[union-attr]
            # torch's removal would change the class that the original shares.
            module.__class__ = type_before_parametrizations(module)
            del module.parametrizations
            for name, value in values.items():
                module.register_parameter(name, nn.Parameter(value.clone()))
    return copied


def _traced(network: nn.Module) -> nn.Module:
    """Return the network as a graph, or as it is where it cannot be traced.

    Raises:
        ShapeError: then it holds a module of svdctl.
    """
    try:
        graph = fx.Tracer().trace(network)
    except Exception as error:  # whatever the network's own code raises on proxies
        for name, module in network.named_modules():
            if any(base.__module__.partition(".")[0] == "svdctl" for base in type(module).__mro__):
                raise ShapeError(
                    f"{name or 'the network'} ({type(module).__name__}) is a module of svdctl, and the network cannot "
                    f"be traced by torch.fx without it: {error}"
                ) from error
        return network
    for node in graph.nodes:
        node.meta.clear()  # classes that were traced through
    return fx.GraphModule(network, graph)


def _pickle_with_meta(plain: fx.GraphModule) -> None:
    """Have pickles and copies of a graph keep its `meta`, which torch drops; the pickles name torch's functions alone.

    torch makes a class of its own for each graph.
    """

    def reduced(self: fx.GraphModule) -> tuple[Any, ...]:
        return *fx.GraphModule.__reduce__(self), {"meta": self.meta}

    def copied(self: fx.GraphModule, memo: dict[int, Any]) -> fx.GraphModule:
        found: fx.GraphModule = fx.GraphModule.__deepcopy__(self, memo)
        _pickle_with_meta(found)
        return found

    kind: Any = type(plain)
    kind.__reduce__, kind.__deepcopy__ = reduced, copied


def _relative_error(wanted: Any, found: Any) -> float:
    """Return `|wanted - found| / |wanted|` in l2 over all tensors of two results."""
    pairs = [
        tuple(each.to(torch.promote_types(each.dtype, torch.float64)) for each in (one, other))
        for one, other in zip(tree_leaves(wanted), tree_leaves(found), strict=True)
        if isinstance(one, Tensor)
    ]
    apart = math.hypot(*(float((one - other).norm()) for one, other in pairs))
    size = math.hypot(*(float(one.norm()) for one, _ in pairs))
    return (apart / size if size else math.inf) if apart else 0.0
