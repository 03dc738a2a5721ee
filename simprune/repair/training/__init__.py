"""Fine-tuning in place, with the original as teacher.

Read `loop` first, which is the whole training from top to bottom. `objective` and `features`: what is learned.
`optimizer`: steps, weight decay, averaged weights, BatchNorm. `randomness`: what makes a training repeatable. `state`:
what an interrupted training goes on from. `log`: its lines. `adapters`: training of low rank.
"""

from simprune.repair.training.loop import finetune, undone

__all__ = ["finetune", "undone"]
