"""What watches a training and may end it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

from torch import Tensor, nn


class Observer(Protocol):
    """Looks at the network after each epoch; its state travels in the checkpoints."""

    def after_epoch(self, epoch: int, model: nn.Module) -> bool:
        """Return whether the training ends here.

        Args:
            epoch: the one just trained; 0 is the first of the dense training.
            model: the network, on its device in training mode; it must stay as it is.
        """

    def state(self) -> dict[str, Tensor]:
        """Return everything that `load` needs to go on as if there had been no break."""

    def load(self, state: Mapping[str, Tensor]) -> None:
        """Go on from what `state` returned."""

    def facts(self) -> Mapping[str, object]:
        """Return, as JSON, what a checkpoint must agree on to be resumed."""
