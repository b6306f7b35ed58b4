"""A few things kept for the next use: open files, parsed indexes. What was used longest ago goes first."""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

T = TypeVar("T")
LOCK = threading.RLock()  # one for all, held for moments, so that a fork can wait for it: no child starts with it taken
if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=LOCK.acquire, after_in_parent=LOCK.release, after_in_child=LOCK.release)


class Recent(Generic[T]):
    """A dict that holds at most ``most``, by the weights of its items; safe in threads, empty in other processes.

    Dropping an item only lets go of it: whoever still uses it in another thread keeps it alive.
    """

    def __init__(self, most: int) -> None:
        self._most, self._weight = most, 0
        self._items: OrderedDict[Hashable, tuple[T, int]] = OrderedDict()

    def __reduce__(self) -> tuple[type[Recent[T]], tuple[int]]:
        return type(self), (self._most,)

    def __len__(self) -> int:
        return len(self._items)

    def get(self, key: Hashable) -> T | None:
        """The item, from now on the one used last."""
        with LOCK:
            found = self._items.get(key)
            if found is None:
                return None
            self._items.move_to_end(key)
            return found[0]

    def put(self, key: Hashable, item: T, weight: int = 1) -> None:
        """Keep an item, instead of others if need be; one that is too heavy by itself is not kept."""
        with LOCK:
            self.drop(key)
            if weight > self._most:
                return
            self._items[key] = item, weight
            self._weight += weight
            while self._weight > self._most:
                self._weight -= self._items.popitem(last=False)[1][1]

    def keeper(self, owner: object) -> Keeper[T]:
        """A part of this dict that is the owner's; its items go with the owner."""
        return Keeper(self, owner)

    def forget(self, token: object) -> None:
        """Let go of all items of a keeper."""
        with LOCK:
            for key in [key for key in self._items if isinstance(key, tuple) and key[0] is token]:
                self.drop(key)

    def drop_if(self, idle: Callable[[T], bool]) -> int:
        """Let go of all items of which this is so; how many. It is asked with the lock held: no more than a moment."""
        with LOCK:
            found = [key for key, (item, _) in self._items.items() if idle(item)]
            for key in found:
                self.drop(key)
        return len(found)

    def drop(self, key: Hashable) -> None:
        """Let go of an item, if it is kept."""
        with LOCK:
            found = self._items.pop(key, None)
            self._weight -= found[1] if found else 0


class Keeper(Generic[T]):
    """One owner's part of a ``Recent`` that many share: the bound is on all of them together."""

    def __init__(self, shared: Recent[T], owner: object) -> None:
        self._shared, self._token = shared, object()
        weakref.finalize(owner, shared.forget, self._token).atexit = False

    def get(self, key: Hashable) -> T | None:
        """See ``Recent.get``."""
        return self._shared.get((self._token, key))

    def put(self, key: Hashable, item: T) -> None:
        """See ``Recent.put``."""
        self._shared.put((self._token, key), item)

    def drop(self, key: Hashable) -> None:
        """See ``Recent.drop``."""
        self._shared.drop((self._token, key))
