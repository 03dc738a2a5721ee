"""Several threads that use simprune at once get the numbers that they would get one after another."""

import json
import threading

import torch
from torch import nn

import simprune as sp


def network(width):
    torch.manual_seed(width)
    layer = nn.TransformerEncoderLayer(8, 2, width, batch_first=True)
    return nn.Sequential(nn.Linear(4, 8), layer, nn.Linear(8, 3)).eval()


def test_two_analyses_at_once_give_the_numbers_of_two_in_turn():
    models, batches = [network(6), network(10)], [torch.randn(12, 5, 4, generator=torch.Generator().manual_seed(1))]

    def numbers(model):
        redundancy = sp.analyze(model, batches)
        return json.dumps(redundancy.to_dict()) + sp.plan(redundancy, {"macs": 0.8}).to_yaml()

    in_turn = [numbers(model) for model in models]
    switch = torch.backends.mha.get_fastpath_enabled()
    at_once = ["", ""]

    def work(number):
        at_once[number] = numbers(models[number])

    threads = [threading.Thread(target=work, args=[number]) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert at_once == in_turn
    assert torch.backends.mha.get_fastpath_enabled() == switch
