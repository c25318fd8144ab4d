"""``tenure member list|add|promote|demote|transfer|remove|replace``: a running cluster's members, by hand.

What may cost the cluster its quorum is refused before it is asked for. Adding and replacing can be interrupted at any
place: run again, they look where things stand and go on. They end with 0, 2 for wrong use, 3 where nobody leads, 4
where a change is refused, 6 where no node answers, 7 without the right token, 8 where it is unknown whether it was
done, 124 where the time was over.
"""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import App, Parameter

from tenure.cli.cluster import Connection, printable
from tenure.cli.output import CommandError, ExitCode, Output, emit_json, emit_table, emit_text, fail, say

if TYPE_CHECKING:
    from tenure.cli.cluster import Answer, Cluster

app = App(name="member", help="Lists and changes the members of a running cluster.", result_action="return_value")

Name = Annotated[str, Parameter(help="The node's name, as its file has it (node.name).")]
Learner = Annotated[bool, Parameter(negative="", help="It receives the log and does not vote.")]
Wait = Annotated[float, Parameter(help="Seconds to wait until it has called and caught up.")]
Yes = Annotated[bool, Parameter(negative="", help="Do not ask.")]

#: How long a member that was stopped may still count as answering: the leader notices within two election timeouts.
#: So long one that was just added may answer nothing before that is told.
QUIET_SECONDS = 5.0
_LOOK_AGAIN_SECONDS = 0.3


@app.command(name="list")
def list_members(*, connection: Connection | None = None, output: Output = "table") -> None:
    """Print every member, who leads, how far each has the log, and the new nodes that wait to be added."""
    with (connection or Connection()).open() as cluster:
        listed = cluster.learn(cluster.anywhere("/v1/members"))
        if listed.get("node") != listed.get("leader"):
            try:
                listed = cluster.members()
            except CommandError as error:
                say(f"warning: this is what {printable(listed.get('node'))} knows: {error.message}")
    if output == "json":
        emit_json(listed)
        return
    emit_text(
        f"cluster {printable(listed.get('cluster'))} ({printable(listed.get('cluster_id')) or 'not founded'}), term "
        f"{listed.get('term')}, leader {printable(listed.get('leader')) or 'unknown'}"
    )
    emit_table(
        ("name", "role", "leads", "raft id", "raft address", "url", "acknowledged", "answers"),
        [_row(member) for member in listed["members"]],
    )
    for name in listed["applicants"]:
        emit_text(f"waits to be added: {printable(name)} (tenure member add {printable(name)})")
    _warn(listed)


@app.command
def add(
    name: Name,
    *,
    learner: Learner = False,
    wait: Wait = 600.0,
    connection: Connection | None = None,
    output: Output = "table",
) -> None:
    """Add a new node: it catches up as a learner, then it votes. Run again, it goes on where it stands."""
    with (connection or Connection()).open() as cluster:
        _bring_in(cluster, name, learner=learner, deadline=_deadline(wait))
        _show_done(cluster, name, output)


@app.command
def promote(name: Name, *, connection: Connection | None = None, output: Output = "table") -> None:
    """Let a learner vote; refused (4) while it lacks too much of the log."""
    with (connection or Connection()).open() as cluster:
        cluster.on_leader("POST", f"/v1/members/{_path(name)}/promote").require()
        _show_done(cluster, name, output)


@app.command
def demote(name: Name, *, connection: Connection | None = None, output: Output = "table") -> None:
    """Take a voter's vote: it goes on receiving the log."""
    with (connection or Connection()).open() as cluster:
        listed = cluster.members()
        _check_rest(listed, _known(listed, name))
        cluster.on_leader("POST", f"/v1/members/{_path(name)}/demote").require()
        _show_done(cluster, name, output)


@app.command
def transfer(
    *,
    to: Annotated[
        str | None, Parameter(help="The voter to take over; without it the one with the most of the log.")
    ] = None,
    connection: Connection | None = None,
    output: Output = "table",
) -> ExitCode:
    """Hand leadership over: work stops, the lease is released, and the successor waits for nothing.

    Exit code: 0 handed over, or it led already; 4 it cannot take over; 1 another one than --to was elected.
    """
    with (connection or Connection()).open() as cluster:
        listed = cluster.members()
        before = listed["leader"]
        if to is not None and to == before:
            say(f"{to} leads already")
            handed = {"leader": before, "leader_url": _known(listed, to)["url"], "term": listed["term"]}
        else:
            _check_successor(listed, to)
            body = None if to is None else {"to": to}
            handed = cluster.on_leader("POST", "/v1/leadership/transfer", body).require(
                when_unknown="tenure member list"
            )
    leader = printable(handed["leader"])
    if output == "json":
        emit_json({**handed, "before": before})
    else:
        emit_text(f"{leader} leads, term {handed['term']}")
    if to is None or to == handed["leader"]:
        return ExitCode.OK
    fail(f"{leader} was elected and not {to}", f"tenure member transfer --to {to}")
    return ExitCode.FAILED


@app.command
def remove(name: Name, *, yes: Yes = False, connection: Connection | None = None, output: Output = "table") -> None:
    """Remove a member for good: its node ends by itself, and its data directory is of no use any more."""
    with (connection or Connection()).open() as cluster:
        listed = cluster.members()
        member = _known(listed, name)
        _check_rest(listed, member)
        _confirm(f"Remove {name} ({member['role']}{', the leader' if member['leads'] else ''}) for good?", yes=yes)
        _remove(cluster, name)
        _show_done(cluster, name, output)


@app.command
def replace(
    name: Name,
    *,
    learner: Learner = False,
    wait: Wait = 600.0,
    yes: Yes = False,
    connection: Connection | None = None,
    output: Output = "table",
) -> None:
    """Replace a member that lost its disk: remove the old one, then add the node of that name with a new directory.

    Run again after an interruption, it goes on where it stands. A member that answers is not replaced.
    """
    with (connection or Connection()).open() as cluster:
        deadline = _deadline(wait)
        listed = cluster.members()
        member = _find(listed, name)
        if member is not None and member["active"]:
            member = _until_quiet(cluster, member)
        if member is None:
            say(f"{name} is no member now: going on with its new data directory")
        elif member["active"]:
            say(f"{name} is a learner and answers: going on with it")
        else:
            _check_rest(listed, member)
            _confirm(f"Remove {name}, which does not answer, and take a new data directory in its place?", yes=yes)
            say(f"removing {name} with its old data directory")
            _remove(cluster, name)
        _bring_in(cluster, name, learner=learner, deadline=deadline)
        _show_done(cluster, name, output)


# -- the steps --------------------------------------------------------------------------------------------------------


def _bring_in(cluster: Cluster, name: str, *, learner: bool, deadline: float) -> None:
    listed = cluster.members()
    member = _find(listed, name)
    if member is None:
        _wait_for_call(cluster, listed, name, deadline)
        say(f"{name} calls: adding it as a learner")
        cluster.on_leader("POST", "/v1/members", {"name": name, "role": "learner"}).require()
    elif member["role"] == "voter":
        if learner:
            raise CommandError(f"{name} votes already", next_step=f"tenure member demote {name}", code=ExitCode.REFUSED)
        say(f"{name} votes already")
        return
    if learner:
        return
    answer = _promoted(cluster, name, deadline)
    if answer.status == 409 and (member := _find(cluster.members(), name)) and member["role"] == "voter":
        # Somebody else has promoted it meanwhile, or an earlier run of this command has.
        return
    answer.require()


def _promoted(cluster: Cluster, name: str, deadline: float) -> Answer:
    """Ask for its vote until the answer is another one than that it lacks too much of the log."""
    said, quiet_until = "", time.monotonic() + QUIET_SECONDS
    while True:
        answer = cluster.on_leader("POST", f"/v1/members/{_path(name)}/promote")
        if answer.code != "not_caught_up":
            return answer
        progress = printable(answer.document.get("detail"))
        # One that was just added has answered nothing yet: that is worth a word only if it stays like that.
        counted = isinstance(answer.document.get("behind"), int)
        if progress != said and (counted or time.monotonic() >= quiet_until):
            say(f"catching up: {progress}")
            said = progress
        if counted:
            quiet_until = time.monotonic() + QUIET_SECONDS
        _sleep_until(deadline, f"{name} has not caught up; it stays a learner", name)


def _wait_for_call(cluster: Cluster, listed: dict[str, Any], name: str, deadline: float) -> None:
    """Wait until the new node asks to be added; say what to start if it does not."""
    told = False
    while name not in listed["applicants"]:
        if not told:
            say(_how_to_start(listed, name))
            told = True
        _sleep_until(deadline, f"no new node named {name} has called", name)
        listed = cluster.members()
        if _find(listed, name) is not None:
            raise CommandError(
                f"{name} became a member meanwhile", next_step="tenure member list", code=ExitCode.REFUSED
            )


def _how_to_start(listed: dict[str, Any], name: str) -> str:
    peers = [
        f'  {printable(m["name"])} = {{ raft = "{printable(m["address"])}", url = "{printable(m["url"])}" }}'
        for m in listed["members"]
    ]
    lines = [
        f"no new node named {name} calls yet: waiting. Start it with an empty data directory and this in its file",
        "(the rest as the others have it):",
        "",
        "  [node]",
        f'  name = "{name}"',
        "  [raft.peers]",
        *peers,
        f'  {name} = {{ raft = "HOST:PORT", url = "http://HOST:PORT" }}',
        "",
        f"  payment-service run --config {name}.toml",
    ]
    return "\n".join(lines)


def _until_quiet(cluster: Cluster, member: dict[str, Any]) -> dict[str, Any] | None:
    """Wait a moment for one that was just stopped. If it goes on answering, only a learner is let through."""
    name, deadline = member["name"], time.monotonic() + QUIET_SECONDS
    while member["active"]:
        if time.monotonic() >= deadline:
            if member["role"] == "learner":
                return member
            raise CommandError(
                f"{name} votes and answers the leader: it is not lost, or it was replaced already",
                next_step="stop it and give it an empty data directory first, if it has to be replaced",
                code=ExitCode.REFUSED,
            )
        time.sleep(_LOOK_AGAIN_SECONDS)
        found = _find(cluster.members(), name)
        if found is None:
            return None
        member = found
    return member


def _remove(cluster: Cluster, name: str) -> None:
    try:
        cluster.on_leader("DELETE", f"/v1/members/{_path(name)}").require()
    except CommandError as error:
        # A leader that removed itself may be gone before its answer is here: the others know.
        if error.code is not ExitCode.OUTCOME_UNKNOWN or _find(cluster.members(), name) is not None:
            raise


def _check_successor(listed: dict[str, Any], to: str | None) -> None:
    """Refuse what would end the leadership for nothing."""
    if to is None:
        rest = [member for member in listed["members"] if member["role"] == "voter" and not member["leads"]]
        if not any(member["active"] for member in rest):
            raise CommandError(
                "no other voter answers the leader: nobody could take over",
                next_step="tenure member list",
                code=ExitCode.REFUSED,
            )
        return
    member = _known(listed, to)
    if member["role"] != "voter":
        raise CommandError(
            f"{to} is a {member['role']} and cannot lead",
            next_step=f"tenure member promote {to}",
            code=ExitCode.REFUSED,
        )
    if not member["active"]:
        raise CommandError(
            f"{to} does not answer the leader: it could not take over",
            next_step="tenure member list",
            code=ExitCode.REFUSED,
        )


def _check_rest(listed: dict[str, Any], member: dict[str, Any]) -> None:
    """Refuse what would leave no quorum, and say what the voters that stay can still bear."""
    if member["role"] != "voter":
        return
    name = member["name"]
    rest = [other for other in listed["members"] if other["role"] == "voter" and other["name"] != name]
    if not rest:
        raise CommandError(
            f"{name} is the last voter: without it there is no cluster",
            next_step="add another voter first: tenure member add NAME",
            code=ExitCode.REFUSED,
        )
    needed = len(rest) // 2 + 1
    silent = sorted(printable(other["name"]) for other in rest if not other["active"])
    if len(rest) - len(silent) < needed:
        raise CommandError(
            f"without {name} {len(rest)} voters stay, {needed} of them are needed, and {', '.join(silent)} "
            f"{'does' if len(silent) == 1 else 'do'} not answer: the cluster would stop",
            next_step="bring back or replace what does not answer first",
            code=ExitCode.REFUSED,
        )
    spare = len(rest) - len(silent) - needed
    if spare == 0:
        say(f"warning: of the {len(rest)} voters that stay {needed} are needed: none that answers may be lost then")
    elif len(rest) % 2 == 0:
        say(f"warning: {len(rest)} voters bear no more losses than {len(rest) - 1}: an odd number is better")


# -- small things -----------------------------------------------------------------------------------------------------


def _show_done(cluster: Cluster, name: str, output: str) -> None:
    """Say how it stands now, by the list of the members."""
    listed = cluster.members()
    member = _find(listed, name)
    if output == "json":
        emit_json({"name": name, "member": member, "members": listed["members"], "warning": listed["warning"]})
        return
    emit_text(f"{name} is a {member['role']}" if member else f"{name} is no member any more")
    _warn(listed)


def _row(member: dict[str, Any]) -> tuple[str, ...]:
    acknowledged, active = member.get("acknowledged_index"), member.get("active")
    return (
        printable(member["name"]),
        printable(member["role"]),
        "yes" if member["leads"] else "",
        str(member["raft_id"]),
        printable(member["address"]) or "-",
        printable(member["url"]) or "-",
        "-" if acknowledged is None else str(acknowledged),
        "-" if active is None else "yes" if active else "no",
    )


def _warn(listed: dict[str, Any]) -> None:
    if listed.get("warning"):
        say(f"warning: {printable(listed['warning'])}")


def _find(listed: dict[str, Any], name: str) -> dict[str, Any] | None:
    return next((member for member in listed["members"] if member["name"] == name), None)


def _known(listed: dict[str, Any], name: str) -> dict[str, Any]:
    member = _find(listed, name)
    if member is None:
        names = ", ".join(printable(other["name"]) for other in listed["members"])
        raise CommandError(f"{name} is no member; the members are {names}", code=ExitCode.REFUSED)
    return member


def _path(name: str) -> str:
    from urllib.parse import quote

    return quote(name, safe="")


def _deadline(wait: float) -> float:
    if not 0 <= wait <= 86_400:
        raise CommandError(f"--wait {wait:g} is outside 0 to 86400 seconds", code=ExitCode.USAGE)
    return time.monotonic() + wait


def _sleep_until(deadline: float, problem: str, name: str) -> None:
    if time.monotonic() >= deadline:
        raise CommandError(
            f"the time is over: {problem}",
            next_step=f"the same command goes on where it stands; tenure member list shows {name}",
            code=ExitCode.TIMED_OUT,
        )
    time.sleep(_LOOK_AGAIN_SECONDS)


def _confirm(question: str, *, yes: bool) -> None:
    """Ask on a terminal; anywhere else the option --yes is the word that is needed."""
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise CommandError("this needs your word, and there is no terminal to ask: add --yes", code=ExitCode.USAGE)
    sys.stderr.write(f"{question} [y/N] ")
    sys.stderr.flush()
    if sys.stdin.readline().strip().lower() not in {"y", "yes"}:
        raise CommandError("nothing was done", code=ExitCode.REFUSED)
