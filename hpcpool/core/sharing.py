"""Which managers are asked to give unstarted tasks back: for others that are idle, or to be empty soon. Pure."""

from __future__ import annotations

from hpcpool.core.leases import Request
from hpcpool.core.managers import Manager, Managers
from hpcpool.core.placement import Placement


class Sharing:
    """Knows whom to ask; belongs to the scheduler, which changes what both know."""

    def __init__(self, managers: Managers, placement: Placement) -> None:
        self._managers = managers
        self._placement = placement
        #: Managers that are to be asked for what they have not started, whoever is idle.
        self._recalls: dict[bytes, None] = {}

    @property
    def has_recalls(self) -> bool:
        """Whether somebody is to be asked although nobody may be idle."""
        return bool(self._recalls or self._placement.recalls)

    def recall(self, manager: bytes) -> None:
        """Have this manager asked for all that it has not started."""
        self._recalls[manager] = None

    def requests(self, *, has_queued: bool) -> list[Request]:
        """Ask managers that hold unstarted tasks for some of them, when others have nothing to do.

        And ask those for all of them that are kept free for a wide task, or are about to end.

        Args:
            has_queued: tasks are queued, so nobody needs others' tasks.
        """
        requests = self._recall() if self.has_recalls else []
        wanted = self._managers.free_slots - self._managers.asked
        if has_queued or wanted <= 0:
            return requests
        givers = self._managers.givers
        while wanted > 0 and givers:
            name, _ = givers.popitem(last=False)
            manager = self._managers.by_name[name]
            spare = len(manager.leases) - manager.slots
            if manager.tied:
                # It gives the newest, whatever they are: so it is asked for all, if there is one of use among them.
                if spare > len(manager.tied):
                    wanted -= self._ask(manager, spare, requests)
            elif spare > 0:
                wanted -= self._ask(manager, min(spare, wanted), requests)
        return requests

    def _recall(self) -> list[Request]:
        requests: list[Request] = []
        names, self._recalls = [*self._recalls, *self._placement.take_recalls()], {}
        for name in names:
            manager = self._managers.by_name.get(name)
            if manager is None or not manager.leases:
                continue
            if manager.asked:
                self._recalls[name] = None  # when it has answered
            else:
                self._ask(manager, len(manager.leases), requests)
        return requests

    def _ask(self, manager: Manager, count: int, requests: list[Request]) -> int:
        self._managers.givers.pop(manager.name, None)
        manager.asked = count
        self._managers.asked += count
        requests.append(Request(manager.name, count))
        return count
