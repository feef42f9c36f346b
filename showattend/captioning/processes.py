"""The processes of a launch (`accelerate launch`, `torchrun`) that share work and need nothing but torch for it."""

import os
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch.distributed

T = TypeVar("T")


class Processes:
    """This process among all, whose number is `count`; its own is `index`.

    Raises:
        ValueError: If the environment names several processes but not where to find them.
    """

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", 1))
        self.index = int(os.environ.get("RANK", 0)) if self.count > 1 else 0
        if self.count > 1:
            # gloo: only names and numbers are exchanged. The first to finish waits long for the last.
            torch.distributed.init_process_group("gloo", timeout=timedelta(days=30))

    def gather(self, value: T) -> list[T]:
        """Everybody's value, on every process, once all have come here."""
        values: list[Any] = [value]
        if self.count > 1:
            values = [None] * self.count
            torch.distributed.all_gather_object(values, value)
        return values

    def first_does(self, work: Callable[[], T]) -> T:
        """Have the first process do the work while the others wait; all get the result, or raise the error."""
        result: Any = None
        if self.index == 0:
            try:
                result = work()
            except (OSError, ValueError) as error:
                result = error
        if self.count > 1:
            results = [result]
            torch.distributed.broadcast_object_list(results)
            [result] = results
        if isinstance(result, Exception):
            raise result
        return result
