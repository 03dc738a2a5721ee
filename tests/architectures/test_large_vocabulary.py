"""The memory of every stage is independent of the square of the output's width."""

import os
import resource
import subprocess
import sys

import pytest

LIMIT = 10 * 2**30  # bytes of address space; torch alone reserves some, one (50,000 x 50,000) matrix takes 20
CODE = """
import torch, transformers
import simprune as sp
torch.manual_seed(0)
config = transformers.LlamaConfig(
    vocab_size=50_000, hidden_size=16, intermediate_size=32, num_hidden_layers=3, num_attention_heads=2,
    num_key_value_heads=2, tie_word_embeddings={tied}, max_position_embeddings=32,
)
model = transformers.LlamaForCausalLM(config).eval()
batches = [{{"input_ids": torch.randint(50_000, (4, 16))}} for _ in range(2)]
result = sp.compress(
    model, calibration=batches, test=batches, budget={{"params": 0.999}}, structures=["channels", "blocks"],
    gates="language_model",
)
print(len(result.plan.edits), result.verdict.outcome)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited by Linux")
@pytest.mark.parametrize("tied", [False])
def test_a_language_model_with_a_large_vocabulary_fits(tied):
    def limit():
        resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))

    done = subprocess.run(
        [sys.executable, "-c", CODE.format(tied=tied)],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert int(done.stdout.split()[0]) > 0
