"""Founding, before there is a cluster: directories that are new, founded or lost, and what each decides (R7)."""

from __future__ import annotations

from datadriven.verbs import Line, verb
from datadriven.world import World
from support.virtual_cluster import SETTINGS
from tenure.core.founding import PROTOCOL_VERSION, Apply, Hello, Refuse, Wait, decide
from tenure.core.fsm import Enrolment
from tenure.core.roster import Roster


class Directory:
    """One data directory: its random id, and the cluster that it was founded into."""

    def __init__(self, name: str, life: int) -> None:
        self.name, self.life = name, life
        self.enrolment: Enrolment | None = None

    def hello(self, names: tuple[str, ...]) -> Hello:
        """What it says first."""
        return Hello(
            protocol=PROTOCOL_VERSION,
            cluster_name="payments",
            cluster_id=self.enrolment.record.cluster_id if self.enrolment else "",
            name=self.name,
            directory_id=f"{self.name}-{self.life}",
            incarnation=1,
            member_names=names,
            settings=SETTINGS,
        )


@verb("directories x y z")
def directories(world: World, line: Line) -> list[str]:
    """Begin with a new data directory for each of these names."""
    world.directories = {name: Directory(name, 1) for name in line.words}
    line.words.clear()
    return ["ok"]


@verb("wipe x")
def wipe(world: World, line: Line) -> list[str]:
    """Replace a data directory by a new one."""
    name = line.word()
    world.directories[name] = Directory(name, world.directories[name].life + 1)
    return ["ok"]


@verb("found x hears=y,z must=found")
def found(world: World, line: Line) -> list[str]:
    """What a new directory decides when these members answer it."""
    name, heard = line.word(), [other for other in line.option("hears", "").split(",") if other]
    names = tuple(world.directories)
    own = world.directories[name]
    decision = decide(own.hello(names), {other: world.directories[other].hello(names) for other in heard})
    if isinstance(decision, Wait):
        return _demanded(line, "wait", [f"{name} waits for {', '.join(decision.missing)}"])
    if isinstance(decision, Apply):
        return _demanded(line, "apply", [f"{name} asks to be added to cluster {decision.cluster_id}"])
    if isinstance(decision, Refuse):
        return _demanded(line, "refuse", [f"{name} refuses: {reason}" for reason in decision.reasons])
    own.enrolment = decision
    return _demanded(line, "found", [f"{name} founds cluster {decision.record.cluster_id}"])


@verb("greet x from=y must=take")
def greet(world: World, line: Line) -> list[str]:
    """Whether a founded member takes the frames of another one."""
    name, other = line.word(), line.option("from", "")
    own, names = world.directories[name], tuple(world.directories)
    problem = Roster(own.enrolment).admit(own.hello(names), world.directories[other].hello(names))
    if problem is None:
        return _demanded(line, "take", [f"{name} takes frames of {other}"])
    return _demanded(line, "refuse", [f"{name} refuses {other}: {problem}"])


def _demanded(line: Line, done: str, shown: list[str]) -> list[str]:
    must = line.option("must", done)
    if done != must:
        raise AssertionError(f"it must {must}, but:\n" + "\n".join(shown))
    return shown
