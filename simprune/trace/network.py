"""A network: a model together with everything that running it on an example shows."""

from collections.abc import Mapping
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from simprune.core.batches import device_of, main_name, move, tensors_in
from simprune.core.blame import with_line
from simprune.core.copies import sharing
from simprune.core.cost import CostModel, Example
from simprune.core.example import describe, example_of, from_description
from simprune.core.names import did_you_mean
from simprune.core.plan import Plan, fingerprint
from simprune.core.structures import NotPrunable
from simprune.trace.attention import Attention, attentions
from simprune.trace.axes import Axes, axes_of
from simprune.trace.carried import settle
from simprune.trace.context import eval_mode, uncached
from simprune.trace.cost import cost_model
from simprune.trace.coupling import CouplingGraph
from simprune.trace.execution import Execution, execution
from simprune.trace.experts import Mixture, mixtures
from simprune.trace.memory import inputs_at_once
from simprune.trace.rewritten import without_rules
from simprune.trace.shortcuts import BlockCalls
from simprune.trace.training_mode import training_error
from simprune.trace.visits import Visit, visit_lightly

NUMBERS = 1 << 17  # whole numbers in an example that a plan may hold; images of whole numbers are more


class Network:
    """A model, traced once on an example input: order of execution, calls, coupling, shortcuts, attention, costs.

    Every property is computed when it is first read, and then remembered, so nothing is traced twice for users of the
    same Network. It never changes the model, and nobody may change the model as long as the Network is in use.

    Args:
        model: any module. Where weights are computed by weight_norm or a mask, it is the `source`, and `model` a copy
            with plain weights (see `simprune.trace.rewritten`).
        example: its arguments, of one or two inputs; they are moved to the model's device.
        weights: of outputs in the damage, by name; those that it does not name have the weight 1.

    >>> import torch
    >>> network = Network(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), ((torch.zeros(2, 4),), {}))
    >>> network.order, network.costs.total().macs
    (['0', '2'], 48)
    """

    def __init__(self, model: nn.Module, example: Example, weights: Mapping[str, float] | None = None) -> None:
        self.source = model
        self.model = without_rules(model)
        self.example: Example = move(example, device_of(model))
        self._weights = dict(weights or {})

    @classmethod
    def trace(cls, model: nn.Module, batch: object, weights: Mapping[str, float] | None = None) -> "Network":
        """A network traced on the first two rows of a batch."""
        return cls(model, example_of(batch), weights)

    @classmethod
    def of_plan(cls, plan: Plan, model: nn.Module) -> "Network":
        """A network traced on an example of the shapes that a plan describes.

        Raises:
            ValueError: where the plan is of another model, or the model does not run on what it describes.
        """
        plan.check(model)
        network = cls(model, from_description(plan.inputs))
        try:
            _ = network.outputs
        except Exception as error:  # the model is the user's and may raise anything
            raise ValueError(
                f"plan: inputs: the model does not run on what they describe: {with_line(error)}; make the plan anew"
            ) from error
        return network

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weights of outputs in the damage; ValueError for a name that is no output, and where nothing counts."""
        for name in self._weights:
            if name not in self.outputs:
                raise ValueError(f"outputs: the network has no output {name!r}; {did_you_mean(name, self.outputs)}")
        if self._weights and not any(self._weights.get(name, 1) for name in self.outputs):
            raise ValueError("outputs: every output has the weight 0; give at least one a larger one")
        return self._weights

    @cached_property
    def fingerprint(self) -> str:
        """Hash of the names and shapes of all tensors; it binds plans to models."""
        return fingerprint(self.source)

    @cached_property
    def description(self) -> dict[str, Any]:
        """How a plan describes the example: its shapes, with its whole numbers where the model runs only on such.

        A model that takes images among its tokens, for one, needs as many tokens of the image as before.
        """
        plain = describe(self.example)
        whole = sum(value.numel() for value in tensors_in(self.example) if not value.is_floating_point())
        if not 0 < whole <= NUMBERS:
            return plain
        args, kwargs = from_description(plain, device_of(self.model))
        try:
            with eval_mode(self.model), uncached(self.model), torch.no_grad():
                self.model(*args, **kwargs)
        except Exception:  # a foreign forward pass may refuse numbers with errors of any type
            return describe(self.example, values=True)
        return plain

    @cached_property
    def output(self) -> Tensor | None:
        """The model's main output on the example, in evaluation mode."""
        return self.outputs[main_name(self.outputs)] if self.outputs else None

    @cached_property
    def outputs(self) -> dict[str, Tensor]:
        """All outputs of the model on the example, by name, in evaluation mode."""
        return self._visited[1]

    @cached_property
    def trains(self) -> bool:
        """Whether the model runs on the example in training mode, without labels or targets."""
        return training_error(sharing(self.model), self.example) is None

    @cached_property
    def _visited(self) -> tuple[dict[str, Visit], dict[str, Tensor]]:
        return visit_lightly(self.model, self.example)

    def forget(self) -> None:
        """Forget the activations of the example; what reads them again runs the example again.

        Of a language model they are a third of its size.
        """
        for name in ("_visited", "visits", "block_calls"):
            self.__dict__.pop(name, None)

    @cached_property
    def visits(self) -> dict[str, Visit]:
        """Arguments and output of every module with parameters, in the order in which they begin."""
        visits, _ = self._visited
        for name, seen in visits.items():
            seen.axis = self.axes.of(name, "output")
        settle(self.model, visits)
        return visits

    @property
    def order(self) -> list[str]:
        """Convolutions and linear layers that run once, in order of execution."""
        return self.execution.order

    @property
    def normalisers(self) -> dict[str, str]:
        """The BatchNorm that alone reads a layer's output, and nothing else, by the layer's name."""
        return self.execution.normalisers

    @cached_property
    def execution(self) -> Execution:
        """Every call of a layer, the BatchNorms behind it, and where else its weight is used."""
        return execution(self.model, self.example)

    @cached_property
    def axes(self) -> Axes:
        """The dimension along which the channels lie, at the input and the output of every module."""
        return axes_of(self.model, self.example)

    @cached_property
    def attentions(self) -> dict[str, Attention]:
        """The layouts of all attention modules whose layout is known, by name."""
        return attentions(self.model)

    @cached_property
    def mixtures(self) -> dict[str, Mixture]:
        """The mixtures of experts, by name."""
        return mixtures(self.model)

    @property
    def coupling(self) -> CouplingGraph:
        """Which tensors lose entries together; NotPrunable, with the reason, when tracing fails."""
        if isinstance(self._coupling, NotPrunable):
            raise self._coupling
        return self._coupling

    @cached_property
    def _coupling(self) -> CouplingGraph | NotPrunable:
        try:
            return CouplingGraph(self.model, self.example)
        except NotPrunable as reason:
            return reason

    @cached_property
    def costs(self) -> CostModel:
        """What the model costs, term by term."""
        linear = [name for name, module in self.model.named_modules() if isinstance(module, nn.Linear)]
        mixing = any(self.axes.of(name, "input") != self.axes.of(name, "output") for name in linear)
        # Few networks mix positions by linear layers, and the others do without a coupling here.
        known = mixing and isinstance(self._coupling, CouplingGraph)
        return cost_model(self.model, self.example, self.axes, self.coupling.mixers if known else {})

    @cached_property
    def inputs_at_once(self) -> int:
        """How many inputs can run together so that a pass with gradients takes little memory."""
        return inputs_at_once(self.model, self.example)

    @cached_property
    def block_calls(self) -> BlockCalls:
        """Arguments of composite modules, and what runs past them on a shortcut."""
        return BlockCalls(self.model, self.visits, self.axes)
