"""torch-pruning's dependency graph, bounded and checked.

torch-pruning can loop forever, accept wrong indices and skip frozen layers in silence. Every call that builds or asks
its graph is in this file; `simprune.trace.pruners` holds the rules that it calls back.
"""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch_pruning import ops
from torch_pruning.dependency import constants, index_mapping
from torch_pruning.dependency.group import Group

from simprune.core.batches import all_tensors
from simprune.core.cost import Example
from simprune.core.structures import NotPrunable
from simprune.trace.context import eval_mode, requiring
from simprune.trace.layers import is_multiplied
from simprune.trace.pruners import MultipliedPruner, opaque

STEPS = 8  # through operators, per module, by which torch-pruning may look for a width
MULTIPLIED = MultipliedPruner()
UNFOLLOWED = "its channels cannot be followed to the layers that read them"


class GuardedGraph:
    """The graph of one model, traced on an example.

    Args:
        model: the network; afterwards it is as before.
        example: its arguments.
        by_type: torch-pruning's rules for classes of modules.
        whole: modules that are cut as one operation.

    An error of the model itself is passed on unchanged. Where torch-pruning cannot trace the model, `traced` is False.
    """

    def __init__(
        self, model: nn.Module, example: Example, by_type: Mapping[type[nn.Module], Any], whole: Sequence[nn.Module]
    ) -> None:
        args, kwargs = example
        self.traced = False
        self._graph = tp.DependencyGraph()
        for kind, pruner in by_type.items():
            self._graph.register_customized_layer(kind, pruner)
        # torch-pruning traces by gradients, so all parameters require them: a frozen layer would be missing
        with requiring(model, *model.parameters()), eval_mode(model), torch.enable_grad():
            model(*args, **kwargs)  # an error of the model itself is raised here, not inside the trace
            with _without_new_hooks(model), suppress(Exception):  # of any type: the model alone has just run
                with opaque([*whole, *_scalar_activations(model)]), _as_deep_as(sum(1 for _ in model.modules())):
                    self._graph.build_dependency(
                        model,
                        example_inputs=args,  # unused, but required: forward_fn has its arguments
                        forward_fn=lambda net, _: net(*args, **kwargs),
                        output_transform=_with_graph,
                        verbose=False,
                    )
                self.traced = True
        self._forget_activations()
        widest = max((max(p.shape, default=1) for p in model.parameters()), default=1)
        self._index_cap = 4 * widest
        self._item_cap = 8 * len(self._graph.module2node) + 64 if self.traced else 0

    def _forget_activations(self) -> None:
        """Let go of autograd's nodes: they hold what the pass computed, and only the construction asks them."""
        for module, node in getattr(self._graph, "module2node", {}).items():
            node.grad_fn = None
            if isinstance(module, ops._SliceOp):
                module.grad_fn = None

    def sees(self, module: nn.Module) -> bool:
        """Whether the trace went through a module."""
        return self.traced and module in self._graph.module2node

    def pruner(self, module: nn.Module) -> Any:
        """The rule for a module, mostly torch-pruning's."""
        return MULTIPLIED if is_multiplied(module) else self._graph.get_pruner_of_module(module)

    def group(self, module: nn.Module, indices: Sequence[int]) -> list[tuple[Any, list[Any]]]:
        """The items of the group for removing output channels of a layer: what is cut, and where.

        They are not merged, because merging loses which channels share an entry.

        Raises:
            NotPrunable: where torch-pruning cannot follow the channels.
        """
        with self._bounded() as items:
            self._graph.get_pruning_group(module, self.pruner(module).prune_out_channels, list(indices))
        return items

    def is_output(self, dependency: Any) -> bool:
        """Whether an item of a group cuts outputs of its module."""
        return self._graph.is_out_channel_pruning_fn(dependency.handler)

    def name_of(self, parameter: nn.Parameter) -> str:
        """The name of a parameter that is an item of its own."""
        return self._graph._param_to_name[parameter]

    @contextmanager
    def _bounded(self) -> Iterator[list[tuple[Any, Any]]]:
        """Limit the size of the groups that torch-pruning builds within the block; yields the items as they are added.

        With a cyclic mapping of indices torch-pruning would add items forever. It also asks for every new item whether
        the group has it; a set answers at once, where torch-pruning's search through all items would take minutes
        before the limit is reached. Items are not merged, and indices not mapped anew for every group, since nothing is
        cut while a graph is in use: both would take time as the square of the number of layers.
        """
        add_dep, has_pruning_op, merge, items = Group.add_dep, Group.has_pruning_op, Group.add_and_merge, []
        known: set[tuple[Any, Any, tuple]] = set()
        item_cap, index_cap, update = 2 * self._item_cap, self._index_cap, index_mapping.update_index_mapping

        def counted(self: Group, dep: Any, idxs: Any) -> None:
            items.append((dep, idxs))
            if len(items) > item_cap or len(idxs) > index_cap:
                raise NotPrunable("its channels are coupled through a cyclic or exploding index mapping")
            known.add((dep.target, dep.handler, tuple(idxs)))
            add_dep(self, dep, idxs)

        Group.add_dep = counted
        Group.has_pruning_op = lambda self, dep, idxs: (dep.target, dep.handler, tuple(idxs)) in known
        Group.add_and_merge = lambda self, dep, idxs: None
        index_mapping.update_index_mapping = lambda graph: None
        try:
            yield items
        except (IndexError, KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError):
            raise NotPrunable(UNFOLLOWED) from None
        finally:
            Group.add_dep, Group.has_pruning_op, Group.add_and_merge = add_dep, has_pruning_op, merge
            index_mapping.update_index_mapping = update


def _with_graph(returned: Any) -> list[Tensor]:
    """All outputs that were computed from parameters, so that layers in front of any of them are seen."""
    return [tensor for tensor in all_tensors(returned).values() if tensor.grad_fn is not None]


def _scalar_activations(model: nn.Module) -> list[nn.Module]:
    """Activations with one parameter for all channels, which torch-pruning would take for one channel."""
    return [m for m in model.modules() if isinstance(m, nn.PReLU) and m.num_parameters == 1]


@contextmanager
def _as_deep_as(modules: int) -> Iterator[None]:
    """Within the block, torch-pruning looks for widths along as many steps as a deep network needs.

    Where it still gives up, it would go on with wrong indices after a warning; that is an error here.
    """
    depth = constants.MAX_RECURSION_DEPTH
    constants.MAX_RECURSION_DEPTH = max(depth, STEPS * modules)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("error", message="Maximum recursive depth")
            yield
    finally:
        constants.MAX_RECURSION_DEPTH = depth


@contextmanager
def _without_new_hooks(model: nn.Module) -> Iterator[None]:
    """After the block, modules have the forward hooks from before; a trace that fails leaves its own behind."""
    hooks = {module: list(module._forward_hooks) for module in model.modules()}
    try:
        yield
    finally:
        for module, before in hooks.items():
            for key in [key for key in module._forward_hooks if key not in before]:
                del module._forward_hooks[key]
