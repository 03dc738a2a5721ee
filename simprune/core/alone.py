"""Public functions that run one after another when several threads call them.

While a network is read, a global switch of torch is off, and torch's global generator is seeded for a while. Two
threads that did both at once would change each other's numbers without an error.
"""

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")
_LOCK = threading.RLock()  # a public function may call another one


def one_at_a_time(function: Callable[P, R]) -> Callable[P, R]:
    """A decorator: no two threads of a process are in any of the decorated functions at the same time.

    >>> one_at_a_time(max)(1, 2)
    2
    """

    @functools.wraps(function)
    def alone(*args: P.args, **kwargs: P.kwargs) -> R:
        with _LOCK:
            return function(*args, **kwargs)

    return alone
