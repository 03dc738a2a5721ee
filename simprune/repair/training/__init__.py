"""Fine-tuning in place, with the original as teacher.

Read `loop` first, which is the whole training from top to bottom. `objective`, `aim` and `features`: what is learned.
`held`, `damage` and `judge`: on which inputs epochs are judged, and how. `optimizer`: steps, weight decay, averaged
weights, BatchNorm. `processes`: several processes and mixed precision, by accelerate. `randomness`: what makes a
training repeatable. `state`: what an interrupted training goes on from. `log`: its lines. `adapters`: training of low
rank.
"""

from simprune.repair.training.judge import notes_of
from simprune.repair.training.loop import finetune
from simprune.repair.training.state import forget

__all__ = ["finetune", "forget", "notes_of"]
