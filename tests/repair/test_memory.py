"""Memory of a repair: activations of one place in the network, however deep it is."""

import gc
import weakref

import torch
from torch import nn

import simprune as sp
from simprune.core.example import describe, example_of
from simprune.core.plan import Edit, Plan, fingerprint
from simprune.repair import layer_fit
from simprune.repair.lockstep import lockstep
from tests.edit import families

STREAM = 8 * 16 * 32 * 4  # bytes of the stream at one place, on all inputs


def bytes_at_the_last_fit(layers, monkeypatch):
    """Bytes of all tensors that are no weights, while the last layer is fitted."""
    model, seen, original = families.make("llama", num_hidden_layers=layers), [], layer_fit.fit
    ids = torch.randint(3, families.WORDS, (8, 16), generator=torch.Generator().manual_seed(5))
    batches = [{"input_ids": part} for part in ids.split(4)]
    plan = Plan((Edit("block", "model.layers.1"),), fingerprint(model), describe(example_of(batches[0])))
    small = sp.apply(plan, model)
    weights = {p.untyped_storage().data_ptr() for net in (model, small) for p in (*net.parameters(), *net.buffers())}
    gc.collect()
    before = {id(value) for value in gc.get_objects() if type(value) is torch.Tensor}

    def fit(layer, *rest):
        if layer is small.model.layers[-1].mlp.down_proj:
            gc.collect()
            values = [v for v in gc.get_objects() if type(v) is torch.Tensor and id(v) not in before]
            stores = {v.untyped_storage().data_ptr(): v.untyped_storage().nbytes() for v in values if not v.is_meta}
            seen.append(sum(size for store, size in stores.items() if store not in weights))
        return original(layer, *rest)

    monkeypatch.setattr(layer_fit, "fit", fit)
    sp.reconstruct(small, plan, model, batches, {"name": "least_squares", "ridge": 1.0})
    monkeypatch.undo()
    return seen[-1]


def test_memory_of_a_repair_does_not_grow_with_the_number_of_layers(monkeypatch):
    shallow, deep = (bytes_at_the_last_fit(layers, monkeypatch) for layers in (3, 6))
    assert deep - shallow < STREAM


def test_a_pass_that_goes_on_holds_nothing_of_the_stop_before():
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 1))
    stopped, held = [], []
    model[1].register_forward_hook(lambda *seen: stopped.append(weakref.ref(seen[-1])))  # what the first stop gets
    model[3].register_forward_hook(lambda *_: held.append(stopped[len(held)]() is not None))  # on the way to the next
    with lockstep(model, [((torch.randn(5, 2),), {})] * 2, ["2", "4"]) as advance:
        advance("2")
        advance("4")
    assert held == [False, False]
