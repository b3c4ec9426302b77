"""What moderation's scripts should do, said again in Python without any index: every search is over everything."""

from __future__ import annotations

from dataclasses import dataclass, field

LOCK, GRACE, IDLE = 10_000, 6_000, 60_000
LEVELS, MOST_SKIPS = 5, 100
STEP = 2**42


@dataclass
class Item:
    """An item; `holder` and `deadline` while it is locked."""

    id: str
    skill: str
    level: int
    place: int
    author: str
    state: str = "waiting"
    holder: str = ""
    by: str = ""
    since: int = 0
    deadline: int = 0
    excluded: set[str] = field(default_factory=set)
    votes: list[tuple[str, str]] = field(default_factory=list)
    skips: int = 0


@dataclass
class Desk:
    """A desk; `since` is its seat, None without one."""

    name: str
    skills: list[str]
    level: int
    holds: int
    kind: str
    by: str
    deadline: int
    since: int | None = None
    asks_until: int | None = None


class Model:
    """Items, desks and the time."""

    def __init__(self, now: int, two_person: frozenset[str]) -> None:
        self.now = now
        self.items: dict[str, Item] = {}
        self.desks: dict[str, Desk] = {}
        self.two_person = two_person
        self.decided: list[tuple[str, str]] = []

    # ---- who gets what

    def held(self, name: str) -> list[Item]:
        """What a moderator holds, longest held first."""
        mine = [item for item in self.items.values() if item.state == "assigned" and item.holder == name]
        return sorted(mine, key=lambda item: (item.since, item.id))

    def room(self, desk: Desk) -> bool:
        return desk.by != "" and len(self.held(desk.name)) < desk.holds

    @staticmethod
    def may_take(desk: Desk, item: Item) -> bool:
        fits = item.skill in desk.skills and item.level <= desk.level
        return fits and desk.name != item.author and desk.name not in item.excluded

    def assign(self, item: Item, desk: Desk) -> None:
        item.state, item.holder, item.since, item.deadline = "assigned", desk.name, self.now, self.now + LOCK
        item.by = desk.by
        if desk.kind == "http":
            desk.by, desk.asks_until = "", None

    def serve(self, desk: Desk) -> None:
        got = False
        while self.room(desk):
            line = [i for i in self.items.values() if i.state == "waiting" and self.may_take(desk, i)]
            if not line:
                break
            self.assign(min(line, key=lambda item: (item.place, item.id)), desk)
            got = True
        self.sit(desk, anew=got)

    def sit(self, desk: Desk, *, anew: bool) -> None:
        if not self.room(desk):
            desk.since = None
        elif anew or desk.since is None:
            desk.since = self.now

    def place(self, item: Item) -> None:
        fitting = [desk for desk in self.desks.values() if desk.since is not None and self.may_take(desk, item)]
        if fitting:
            desk = min(fitting, key=lambda desk: (desk.since or 0, desk.name))
            self.assign(item, desk)
            self.sit(desk, anew=True)
        else:
            item.state = "waiting"

    def take_back(self, item: Item) -> None:
        item.state, item.holder = "returned", ""
        self.place(item)

    # ---- calls

    def submit(self, item: Item) -> int:
        if item.id in self.items:
            return 0
        self.items[item.id] = item
        item.state = "returned"
        self.place(item)
        return 1

    def join(self, desk: Desk) -> None:
        self.desks[desk.name] = desk
        self.serve(desk)

    def ask(self, name: str, by: str, wait: int) -> int:
        desk = self.desks.get(name)
        if desk is None:
            return 0
        if desk.kind == "socket" and desk.by:
            return -1
        desk.kind, desk.by, desk.deadline = "http", by, self.now + wait + IDLE
        for item in self.held(name):
            item.by = by
        self.serve(desk)
        if desk.by and (wait == 0 or not self.room(desk)):
            desk.by, desk.since = "", None
        desk.asks_until = self.now + wait if desk.by else None
        return 1

    def rest(self, name: str, by: str, keep: int) -> bool:
        desk = self.desks.get(name)
        if desk is None or not by or desk.by != by:
            return False
        desk.by, desk.since, desk.asks_until, desk.deadline = "", None, None, self.now + keep
        return True

    def drop(self, name: str, by: str) -> int:
        desk = self.desks.get(name)
        if desk is not None and desk.by == by:
            desk.by, desk.since, desk.asks_until = "", None, None
        count = 0
        for item in self.held(name):
            if item.holder == name and item.by == by:
                self.take_back(item)
                count += 1
        return count

    def leave(self, name: str) -> bool:
        desk = self.desks.get(name)
        if desk is None:
            return False
        desk.by, desk.since = "", None
        for item in self.held(name):
            self.take_back(item)
        del self.desks[name]
        return True

    def beat(self, name: str, by: str) -> int:
        desk = self.desks.get(name)
        if desk is None:
            return -1
        if desk.by != by:
            return -2
        desk.deadline = self.now + GRACE
        return 0

    def tick(self) -> None:
        locked = [item for item in self.items.values() if item.state == "assigned" and item.deadline <= self.now]
        for item in sorted(locked, key=lambda item: (item.deadline, item.id)):
            holder = self.desks.get(item.holder)
            self.take_back(item)
            if holder is not None and holder.by:
                self.serve(holder)
        for desk in self.desks.values():
            if desk.asks_until is not None and desk.asks_until <= self.now:
                desk.by, desk.since, desk.asks_until = "", None, None
        gone = [desk for desk in self.desks.values() if desk.deadline <= self.now]
        for desk in sorted(gone, key=lambda desk: (desk.deadline, desk.name)):
            self.leave(desk.name)

    def extend(self, item: Item) -> bool:
        if item.deadline <= self.now:
            return False
        item.deadline = self.now + LOCK
        return True

    def decide(self, item: Item, decision: str, level: int) -> str | int:
        """The outcome, or the code of a refusal; for the item's live token."""
        if item.deadline <= self.now:
            return -1
        if decision == "skip" and item.skips >= MOST_SKIPS:
            return -3
        if decision == "escalate" and level <= item.level:
            return -4
        name = item.holder
        item.state, item.holder = "returned", ""
        outcome = self.weigh(item, name, decision, level)
        if outcome in ("approved", "rejected"):
            item.state = outcome
            self.decided.append((item.id, outcome))
        else:
            item.excluded.add(name)
            self.place(item)
        if name in self.desks:
            self.serve(self.desks[name])
        return outcome

    def weigh(self, item: Item, name: str, decision: str, level: int) -> str:
        if decision == "skip":
            item.skips += 1
            return "skipped"
        if decision == "escalate":
            item.level, item.votes = level, []
            return "escalated"
        final = "approved" if decision == "approve" else "rejected"
        if not item.votes and item.skill.partition(":")[0] not in self.two_person:
            return final
        agrees = any(vote == decision for vote, _ in item.votes)
        first = not item.votes
        item.votes.append((decision, name))
        if agrees:
            return final
        if first or item.level == LEVELS:
            return "voted"
        item.level, item.votes = item.level + 1, []
        return "escalated"
