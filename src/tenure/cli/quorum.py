"""``tenure recover quorum``: the way out when more than half of the voters are lost for good (R16).

It works offline, on the data directory of the stopped survivor whose log reaches furthest. It must not act without the
operator's word, nor while a quorum may still live; it shows what it would do and what is lost before it does it. It
ends with 0 when done, 2 for wrong use, 4 where it refuses, 5 where the directory is damaged.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Parameter

from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text, say
from tenure.cli.stopped import ConfigFile, DataDir
from tenure.errors import DirectoryInUse, LogCorrupt, MembershipRefused

if TYPE_CHECKING:
    from tenure.config import Config
    from tenure.core.verdict import NodeView
    from tenure.node.recover_cluster import Recovered, Survivor

Compare = Annotated[
    list[Path] | None,
    Parameter(
        negative_iterable="",
        consume_multiple=True,
        help="Data directories of stopped survivors, or copies of them: say which one to take, and do nothing.",
    ),
]
Word = Annotated[
    bool,
    Parameter(
        name="--the-others-are-dead-for-good",
        negative="",
        help="Your word that no other member runs, or ever will again with the data directory that it had.",
    ),
]
Endpoints = Annotated[
    list[str] | None,
    Parameter(
        name="--endpoint",
        negative_iterable="",
        consume_multiple=True,
        help="Base URL of another member, asked whether it lives; repeat it. Default: the URLs that the file and the "
        "log know.",
    ),
]
Force = Annotated[bool, Parameter(negative="", help="Act although a quorum of the cluster may still live.")]
Yes = Annotated[bool, Parameter(negative="", help="Do not ask for the cluster's id.")]


def quorum(
    *,
    data_dir: DataDir = None,
    config: ConfigFile = None,
    compare: Compare = None,
    the_others_are_dead_for_good: Word = False,
    yes: Yes = False,
    force: Force = False,
    endpoint: Endpoints = None,
    timeout: Annotated[float, Parameter(help="Seconds to wait for one answer.")] = 2.0,
    output: Output = "table",
) -> ExitCode:
    """Give a lost majority up: make one stopped survivor the only member, under a higher generation.

    Without --the-others-are-dead-for-good it shows what it would do, and changes nothing.
    """
    from tenure.node.engine import require_engine

    require_engine()
    if compare:
        return _compare(compare, output)
    if not 0 < timeout <= 60:
        raise CommandError(f"--timeout {timeout:g} is outside 0 to 60 seconds", code=ExitCode.USAGE)
    settings = _load(config)
    folder = data_dir or (Path(settings.node.data_dir) if settings else None)
    if folder is None:
        raise CommandError("name the survivor's directory: --data-dir DIR, or --config FILE", code=ExitCode.USAGE)
    survivor = _survivor(folder)
    answering = _answering(survivor, settings, endpoint or (), timeout)
    plan = _plan(folder, survivor, answering)
    refusal = _refusal(survivor, answering, word=the_others_are_dead_for_good, force=force)
    if refusal is not None or output == "table":
        _show(plan, output)
    if refusal is not None:
        raise refusal
    word = survivor.cluster_id if yes else _typed_id(survivor)
    done = _recover(folder, settings, word)
    if output == "json":
        emit_json({**plan, "done": True, "lineage": done.lineage, "last_index_after": done.last_index})
    else:
        _show_done(done)
    return ExitCode.OK


class _NoMember(CommandError):
    """The directory is new, or that of a member that was removed: a cluster cannot go on with it."""


# -- looking ----------------------------------------------------------------------------------------------------------


def _load(path: Path | None) -> Config | None:
    if path is None:
        return None
    from tenure.config import load

    return load(path).config


def _survivor(folder: Path) -> Survivor:
    from tenure.node.recover_cluster import survivor_in

    try:
        return survivor_in(folder)
    except DirectoryInUse as error:
        raise CommandError(str(error), next_step="stop the node first", code=ExitCode.REFUSED) from None
    except MembershipRefused as error:
        raise _NoMember(str(error), code=ExitCode.REFUSED) from None
    except LogCorrupt as error:
        raise CommandError(
            str(error), next_step="recover on another survivor", code=ExitCode.VERIFICATION_FAILED
        ) from None


def _answering(
    survivor: Survivor, settings: Config | None, endpoints: Sequence[str], timeout_s: float
) -> list[NodeView]:
    """The other members that answer, by their own word members of this very cluster."""
    from tenure.recovery.nodes import ask_nodes
    from tenure.recovery.targets import find_targets

    peers = settings.raft.peers if settings is not None else {}
    known = {**survivor.urls, **{name: peer.url for name, peer in peers.items()}}
    urls = [*endpoints] or [url for name, url in known.items() if name != survivor.name and url]
    if not urls:
        say("warning: no URL of another member is known, so none was asked whether it lives: name them by --endpoint")
        return []
    targets = find_targets(endpoints=urls, dsn=None, logs=(), demo=None, environ={})
    views = asyncio.run(ask_nodes(targets.endpoints, timeout_s=timeout_s))
    return [
        view
        for view in views
        if view.state is not None and view.name != survivor.name and view.cluster_id in (None, survivor.cluster_id)
    ]


def _refusal(survivor: Survivor, answering: list[NodeView], *, word: bool, force: bool) -> CommandError | None:
    """Why nothing is done, or None."""
    if survivor.voters == (survivor.name,):
        return CommandError(
            f"{survivor.name} is the only voter of its cluster: nothing was changed",
            next_step="start it: it leads alone",
            code=ExitCode.REFUSED,
        )
    # A new data directory under an old name belongs to no cluster yet: it is no voter that lives.
    own = survivor.cluster_id
    voters = [view.name for view in answering if view.cluster_id == own and view.name in survivor.voters]
    leaders = [view.name for view in answering if view.state == "leader"]
    needed = len(survivor.voters) // 2 + 1
    if leaders and not force:
        return CommandError(
            f"{leaders[0]} leads: there is a quorum, and nothing was changed",
            next_step=f"start {survivor.name} as it is, or replace it: tenure member replace {survivor.name}",
            code=ExitCode.REFUSED,
        )
    if len(voters) + (survivor.name in survivor.voters) >= needed and not force:
        return CommandError(
            f"{', '.join(voters) or 'nobody else'} answers, and with {survivor.name} that is a quorum of "
            f"{len(survivor.voters)} voters: nothing was changed",
            next_step=f"start {survivor.name} as it is; if they cannot work together for good, stop the others, or "
            "use --force",
            code=ExitCode.REFUSED,
        )
    if not word:
        return CommandError(
            "nothing was changed: it takes your word that the others are dead",
            next_step="the same command with --the-others-are-dead-for-good",
            code=ExitCode.REFUSED,
        )
    return None


def _plan(folder: Path, survivor: Survivor, answering: list[NodeView]) -> dict[str, Any]:
    return {
        "done": False,
        "data_dir": str(folder),
        **_facts(survivor),
        "answering": [view.name for view in answering],
        "given_up": list(survivor.others),
        "generation_after": survivor.generation + 1,
        "committed_by_this": max(0, survivor.last_index - survivor.commit_index),
    }


def _facts(survivor: Survivor) -> dict[str, Any]:
    return {
        "survivor": survivor.name,
        "cluster": survivor.cluster_name,
        "cluster_id": survivor.cluster_id,
        "voters": list(survivor.voters),
        "learners": list(survivor.learners),
        "last_term": survivor.last_term,
        "last_index": survivor.last_index,
        "commit_index": survivor.commit_index,
        "generation": survivor.generation,
        "lineage": survivor.lineage,
    }


# -- acting -----------------------------------------------------------------------------------------------------------


def _typed_id(survivor: Survivor) -> str:
    say(f"to give up {', '.join(survivor.others)} for good, type the cluster's id, {survivor.cluster_id}:")
    typed = sys.stdin.readline().strip()
    if typed != survivor.cluster_id:
        raise CommandError(
            f"the cluster's id was not typed: nothing was changed ({typed!r})",
            next_step="type it, or add --yes",
            code=ExitCode.REFUSED,
        )
    return typed


def _recover(folder: Path, settings: Config | None, word: str) -> Recovered:
    from tenure.node.recover_cluster import recover_cluster, recover_data_dir

    try:
        if settings is not None and Path(settings.node.data_dir) == folder:
            return recover_cluster(settings, all_others_are_dead=word)
        return recover_data_dir(folder, all_others_are_dead=word)
    except (DirectoryInUse, MembershipRefused) as error:
        raise CommandError(str(error), code=ExitCode.REFUSED) from None


def _compare(folders: list[Path], output: str) -> ExitCode:
    """Which survivor to take: the one whose last entry has the highest term, then the highest index."""
    found: list[tuple[Path, Survivor]] = []
    ignored: list[dict[str, str]] = []
    for each in folders:
        try:
            found.append((each, _survivor(each)))
        except _NoMember as problem:
            say(f"note: {each} is ignored: {problem.message}")
            ignored.append({"data_dir": str(each), "reason": problem.message})
    if not found:
        raise CommandError(
            "none of these directories is a member's: there is nothing to compare", code=ExitCode.REFUSED
        )
    clusters = {(survivor.cluster_id, survivor.lineage) for _, survivor in found}
    folder, best = max(found, key=lambda pair: (pair[1].last_term, pair[1].last_index))
    one = len(clusters) == 1
    if output == "json":
        survivors = [{"data_dir": str(path), **_facts(survivor)} for path, survivor in found]
        emit_json({"survivors": survivors, "ignored": ignored, "take": str(folder) if one else None})
    else:
        columns = ("data_dir", "survivor", "last_term", "last_index", "commit_index", "generation", "lineage")
        rows = [{"data_dir": str(path), **_facts(survivor)} for path, survivor in found]
        emit_table(columns, [tuple(str(row[column]) for column in columns) for row in rows])
    if not one:
        raise CommandError(
            "these directories are of different clusters, or of the two sides of a recovery: nothing can be compared",
            code=ExitCode.REFUSED,
        )
    if output != "json":
        emit_text(
            f"\ntake {best.name}: no other log reaches further than entry {best.last_index} of term {best.last_term}"
        )
        emit_text(f"tenure recover quorum --data-dir {folder}")
    return ExitCode.OK


# -- telling ----------------------------------------------------------------------------------------------------------


def _show(plan: dict[str, Any], output: str) -> None:
    if output == "json":
        emit_json(plan)
        return

    def names(key: str) -> str:
        return ", ".join(plan[key]) or "-"

    emit_table(
        ("recover quorum", "value"),
        [
            ("survivor", f"{plan['survivor']} of {plan['cluster']} ({plan['cluster_id']})"),
            ("data_dir", plan["data_dir"]),
            ("voters", names("voters")),
            ("learners", names("learners")),
            ("answering", names("answering")),
            ("given up", names("given_up")),
            ("last entry", f"{plan['last_index']} of term {plan['last_term']}"),
            ("generation", f"{plan['generation']}, then {plan['generation_after']} with a new lineage"),
        ],
    )
    emit_text(
        f"\nwhat is lost: whatever others acknowledged beyond entry {plan['last_index']}, and their data directories."
    )
    if plan["committed_by_this"]:
        emit_text(
            f"{plan['committed_by_this']} entries from {plan['commit_index'] + 1} on were not known to be committed: "
            "they count as committed then."
        )
    for name in plan["answering"]:
        emit_text(f"{name} still answers: stop it first, its data directory is of no use afterwards.")


def _show_done(done: Recovered) -> None:
    name = done.before.name
    emit_text(f"\ndone: {name} is the only member, of generation {done.generation}, lineage {done.lineage}.")
    emit_text(f"1. Start {name}. It waits the old lease out, then it leads and raises the fence.")
    for number, other in enumerate(done.before.others, 2):
        emit_text(f"{number}. Give {other} a new data directory, start it, and run: tenure member add {other}")
