"""Recovery by force, without a network: what it writes, what it leaves, when it refuses, and what the command says."""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import msgspec
import pytest

import tenure
from support.recovered_directories import (
    ACQUIRE,
    CLUSTER,
    RECORD,
    SETTINGS,
    WHEREVER_THE_LOG_IS,
    WORD,
    change,
    directory_of,
    entry,
    hello,
)
from support.recovery import recover as recover_virtually
from support.virtual_cluster import VirtualCluster
from tenure.cli import main
from tenure.cli.output import ExitCode
from tenure.config import from_mapping
from tenure.core import commands, manifest
from tenure.core.commands import MembersChange, Recover
from tenure.core.fsm import apply_entry, initial_state
from tenure.core.manifest import Content, Manifest
from tenure.core.roster import Roster
from tenure.node.recover_cluster import recover_data_dir, survivor_in
from tenure.raft import recover_cluster
from tenure.storage import DataDirectory, SegmentLogStore, SqliteLogStore, StoredSnapshot

# -- what is written --------------------------------------------------------------------------------------------------


@WHEREVER_THE_LOG_IS
def test_R16_survivor_is_the_only_member_of_the_next_generation(tmp_path: Path, kept_in: str):
    """One save of the next term, committed to its end: the command, then each of the others removed."""
    folder = directory_of(tmp_path / "b", [entry(ACQUIRE)], commit=1, kept_in=kept_in)
    done = recover_data_dir(folder, all_others_are_dead=CLUSTER)
    assert (done.generation, done.last_index) == (1, 5)
    assert done.before.others == ("a", "c")
    assert (done.before.commit_index, done.before.last_index) == (1, 2)
    with DataDirectory.inspect(folder) as directory:
        assert (directory.log is directory.store) == (kept_in == "database")
        stored = directory.log.load()
        assert (stored.term, stored.vote, stored.commit) == (2, 2, 5)
        assert len(stored.batches) == 2
        enrolment = directory.enrolment
    assert enrolment is not None
    assert enrolment.membership is not None
    assert enrolment.membership.voters == (2,)
    assert [record.name for record in enrolment.membership.members] == ["b"]
    assert (enrolment.membership.generation, enrolment.membership.lineage) == (1, done.lineage)
    assert done.lineage != RECORD.lineage


def test_R16_two_recoveries_never_share_a_lineage(tmp_path: Path):
    """Run on two survivors of one loss: one generation, two lineages."""
    first = recover_data_dir(directory_of(tmp_path / "b", []), all_others_are_dead=CLUSTER)
    second = recover_data_dir(directory_of(tmp_path / "c", [], name="c"), all_others_are_dead=CLUSTER)
    assert first.generation == second.generation == 1
    assert first.lineage != second.lineage


def test_R16_joint_configuration_is_left_before_the_others_go(tmp_path: Path):
    """The log ends in the middle of a change that takes two votes away; nobody has left it yet."""
    joint = change([("add_learner", 2), ("add_learner", 3)], MembersChange())
    folder = directory_of(tmp_path / "b", [joint])
    recover_data_dir(folder, all_others_are_dead=CLUSTER)
    after = survivor_in(folder)
    assert (after.voters, after.learners, after.others) == (("b",), (), ())


def test_R16_member_that_a_joint_change_was_removing_is_gone(tmp_path: Path):
    """Its vote still counted, its removal was on the way."""
    joint = change([("remove", 1), ("remove", 3)], MembersChange(removed=(1, 3)))
    folder = directory_of(tmp_path / "b", [joint])
    recover_data_dir(folder, all_others_are_dead=CLUSTER)
    assert survivor_in(folder).voters == ("b",)


def test_R16_learner_that_survives_alone_is_made_a_voter(tmp_path: Path):
    """The only log that is left is a learner's."""
    folder = directory_of(tmp_path / "b", [change([("add_learner", 2)], MembersChange())])
    before = recover_data_dir(folder, all_others_are_dead=CLUSTER).before
    assert (before.voters, before.learners, before.others) == (("a", "c"), ("b",), ("a", "c"))
    assert survivor_in(folder).voters == ("b",)


def test_R16_recovery_keeps_the_holding_and_the_wait_for_it():
    """The old leader may still live: its lease is waited out, also where the log ended in its RELEASE (R9)."""
    state = apply_entry(initial_state(RECORD), commands.encode(ACQUIRE), index=1)
    released = apply_entry(state, commands.encode(commands.Release(holder=2, term=1, incarnation=7)), index=2)
    assert released.released
    recovered = apply_entry(released, commands.encode(Recover(1, "f" * 16)), index=3)
    assert not recovered.released
    assert recovered.holding == state.holding
    assert (recovered.generation, recovered.last_count, recovered.lineage) == (1, 0, "f" * 16)


def test_R16_recovered_member_waits_the_old_lease_out():
    """The paused leader's lease is longer than the cluster's present one; G2 is checked at every step."""
    settings = msgspec.structs.replace(SETTINGS, lease_duration_ms=5000)
    cluster = VirtualCluster(settings=settings)
    old = cluster.elect()
    shorter = msgspec.structs.replace(settings, lease_duration_ms=500)
    cluster.run(cluster.nodes[old], cluster.core(old).change_settings(shorter, cluster.reading(cluster.nodes[old])))
    cluster.advance(1000)
    cluster.pause(old)
    survivor, lost = (raft_id for raft_id in cluster.nodes if raft_id != old)
    cluster.crash(lost)
    cluster.crash(survivor)
    done, directory = recover_virtually(cluster, survivor)
    assert directory.enrolment.membership is not None
    assert directory.enrolment.membership.lineage == done.lineage
    cluster.restart(survivor)
    assert cluster.advance(3000, until=lambda: cluster.core(survivor).view().raft_role == "leader")
    assert cluster.lease_holders() == [old]
    assert cluster.advance(10_000, until=lambda: cluster.leaders() == [survivor])
    assert cluster.lease_holders() == [survivor]
    assert cluster.fence.raises[-1] >> 32 == 1


# -- when it refuses --------------------------------------------------------------------------------------------------


def test_R16_recovery_wants_the_operators_word(tmp_path: Path):
    """Without it, or with another cluster's id, not even the hard state is touched."""
    folder = directory_of(tmp_path / "b", [])
    before = survivor_in(folder)
    for word in ("", "yes", "d" * 32):
        with pytest.raises(tenure.MembershipRefused, match=CLUSTER):
            recover_data_dir(folder, all_others_are_dead=word)
    assert survivor_in(folder) == before


def test_R16_recovery_refuses_where_there_is_nothing_to_recover(tmp_path: Path):
    """A folder that is none, a new directory, a removed member, one that leads alone already."""
    with pytest.raises(tenure.StorageError):
        recover_data_dir(tmp_path / "nothing", all_others_are_dead=CLUSTER)
    assert not (tmp_path / "nothing").exists()
    DataDirectory.open(tmp_path / "new", node_name="b", cluster_name="c").close()
    with pytest.raises(tenure.MembershipRefused, match="is new"):
        recover_data_dir(tmp_path / "new", all_others_are_dead=CLUSTER)
    removed = directory_of(tmp_path / "removed", [change([("remove", 2)], MembersChange(removed=(2,)))])
    with pytest.raises(tenure.MembershipRefused, match="is no member by its own log"):
        recover_data_dir(removed, all_others_are_dead=CLUSTER)
    alone = directory_of(tmp_path / "alone", [])
    recover_data_dir(alone, all_others_are_dead=CLUSTER)
    with pytest.raises(tenure.MembershipRefused, match="only voter"):
        recover_data_dir(alone, all_others_are_dead=CLUSTER)


def test_R16_recovery_refuses_a_directory_in_use_and_takes_the_configuration(tmp_path: Path):
    """The same by a node's configuration, which must be that of the directory."""
    folder = directory_of(tmp_path / "b", [])

    def config(name: str) -> tenure.Config:
        peers = {
            peer: {"raft": f"127.0.0.1:{port}", "url": f"http://{peer}.invalid"} for port, peer in enumerate("abc", 1)
        }
        return from_mapping(
            {
                "cluster": {"name": "c"},
                "node": {"name": name, "data_dir": str(folder)},
                "raft": {"listen": "127.0.0.1:0", "peers": peers},
            }
        )

    with DataDirectory.inspect(folder):
        pass
    holder = DataDirectory.open(folder, node_name="b", cluster_name="c")
    with pytest.raises(tenure.DirectoryInUse):
        recover_cluster(config("b"), all_others_are_dead=CLUSTER)
    holder.close()
    with pytest.raises(tenure.WrongCluster, match="belongs to node 'b'"):
        recover_cluster(config("a"), all_others_are_dead=CLUSTER)
    assert recover_cluster(config("b"), all_others_are_dead=CLUSTER).generation == 1


@WHEREVER_THE_LOG_IS
def test_R16_failure_between_the_two_writes_leaves_nothing_that_leads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kept_in: str
):
    """The directory has the new lineage and the log does not: nobody shares it, and the recovery is run again."""
    folder = directory_of(tmp_path / "b", [], kept_in=kept_in)

    def fail(*_: Any, **__: Any) -> None:
        raise tenure.StorageFull("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(SegmentLogStore if kept_in == "segments" else SqliteLogStore, "save", fail)
        with pytest.raises(tenure.StorageFull):
            recover_data_dir(folder, all_others_are_dead=CLUSTER)
    with DataDirectory.inspect(folder) as directory:
        torn = directory.enrolment
    assert torn is not None
    assert torn.membership is not None
    problem = Roster(torn).admit(hello("b", lineage=torn.membership.lineage), hello("a"))
    assert problem is not None
    assert "follows lineage" in problem
    assert survivor_in(folder).voters == ("a", "b", "c")
    done = recover_data_dir(folder, all_others_are_dead=CLUSTER)
    assert done.generation == 1
    assert done.lineage != torn.membership.lineage


def test_R16_torn_content_of_a_snapshot_is_found_before_anybody_is_given_up(tmp_path: Path):
    """The survivor could not start afterwards."""
    folder = tmp_path / "b"
    directory = DataDirectory.open(folder, node_name="b", cluster_name="c")
    directory.found(RECORD)
    content = Content(id="missing", size=1, sha256="0" * 64)
    taken = Manifest(index=9, term=1, state=initial_state(RECORD), voters=(1, 2, 3), content=content)
    directory.log.save(
        first=0, last=0, entries=b"", hard_state=(1, 0, 9), snapshot=StoredSnapshot(9, 1, manifest.encode(taken))
    )
    directory.close()
    with pytest.raises(tenure.StorageError):
        recover_data_dir(folder, all_others_are_dead=CLUSTER)


# -- the command ------------------------------------------------------------------------------------------------------


class Node(BaseHTTPRequestHandler):
    """A stand-in for a payment node that says of itself what the server was given."""

    def do_GET(self) -> None:
        body = json.dumps(self.server.facts).encode()  # type: ignore[attr-defined]
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        return


class Living:
    """Other members that answer, each at an address of its own."""

    def __init__(self) -> None:
        self._servers: list[ThreadingHTTPServer] = []

    def add(self, **facts: Any) -> str:
        server = ThreadingHTTPServer(("127.0.0.1", 0), Node)
        server.facts = {"state": "follower", "term": 1, "cluster_id": CLUSTER, **facts}  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        self._servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    def close(self) -> None:
        for server in self._servers:
            server.shutdown()
            server.server_close()


@pytest.fixture
def living() -> Iterator[Living]:
    nodes = Living()
    yield nodes
    nodes.close()


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TENURE_NODE__DATA_DIR", raising=False)


#: An address where nobody listens.
NOBODY = ("--endpoint", "http://127.0.0.1:9")


def quorum(folder: Path, *options: str) -> int:
    return main(["recover", "quorum", "--data-dir", str(folder), *(options or NOBODY)])


def test_R16_command_shows_what_it_would_do_and_does_nothing_without_the_word(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """Members, the end of the log, generation now and then, what is lost; exit code 4."""
    folder = directory_of(tmp_path / "b", [entry(ACQUIRE)], commit=1)
    before = survivor_in(folder)
    assert quorum(folder) == ExitCode.REFUSED
    shown = capsys.readouterr()
    assert "given up\ta, c" in shown.out
    assert "last entry\t2 of term 1" in shown.out
    assert "generation\t0, then 1 with a new lineage" in shown.out
    assert "1 entries from 2 on were not known to be committed" in shown.out
    assert "nothing was changed" in shown.err
    assert WORD in shown.err
    assert survivor_in(folder) == before


@WHEREVER_THE_LOG_IS
def test_R16_command_recovers_once_the_cluster_id_is_typed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, kept_in: str
):
    """A wrong id changes nothing; the right one does it, and the next steps are told."""
    folder = directory_of(tmp_path / "b", [], kept_in=kept_in)
    monkeypatch.setattr("sys.stdin", io.StringIO("b\n"))
    assert quorum(folder, WORD, *NOBODY) == ExitCode.REFUSED
    assert "nothing was changed" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{CLUSTER}\n"))
    assert quorum(folder, WORD, *NOBODY) == ExitCode.OK
    assert "tenure member add a" in capsys.readouterr().out
    assert survivor_in(folder).generation == 1
    assert quorum(folder, WORD, "--yes", *NOBODY) == ExitCode.REFUSED
    assert "only voter" in capsys.readouterr().err


def test_R16_command_prints_one_object(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """What was found and what was done, for machines; the same without the word, not done."""
    folder = directory_of(tmp_path / "b", [entry(ACQUIRE)])
    assert quorum(folder, "-o", "json", *NOBODY) == ExitCode.REFUSED
    planned = json.loads(capsys.readouterr().out)
    assert (planned["done"], planned["given_up"], planned["generation_after"]) == (False, ["a", "c"], 1)
    assert quorum(folder, WORD, "--yes", "-o", "json", *NOBODY) == ExitCode.OK
    done = json.loads(capsys.readouterr().out)
    assert (done["done"], done["schema"], done["cluster_id"], done["last_index"]) == (True, 1, CLUSTER, 2)
    assert done["lineage"] == survivor_in(folder).lineage


def test_R16_command_refuses_while_a_quorum_may_live(
    tmp_path: Path, living: Living, capsys: pytest.CaptureFixture[str]
):
    """One other of three answers: with the stopped one they are two. A leader is a quorum by itself."""
    folder = directory_of(tmp_path / "b", [])
    before = survivor_in(folder)
    follower, leader = living.add(name="c"), living.add(name="a", state="leader")
    assert quorum(folder, WORD, "--yes", "--endpoint", follower) == ExitCode.REFUSED
    assert "c answers, and with b that is a quorum of 3 voters" in capsys.readouterr().err
    assert quorum(folder, WORD, "--yes", "--endpoint", leader) == ExitCode.REFUSED
    assert "a leads" in capsys.readouterr().err
    assert survivor_in(folder) == before
    assert quorum(folder, WORD, "--yes", "--force", "--endpoint", follower) == ExitCode.OK
    assert "c still answers: stop it first" in capsys.readouterr().out


def test_R16_command_does_not_count_a_new_directory_under_an_old_name(tmp_path: Path, living: Living):
    """The lost nodes were started with empty disks and wait: they are no voters."""
    folder = directory_of(tmp_path / "b", [])
    endpoints = [living.add(name=name, cluster_id=None, state="candidate") for name in "ac"]
    assert quorum(folder, WORD, "--yes", "--endpoint", endpoints[0], "--endpoint", endpoints[1]) == ExitCode.OK


def test_R16_command_refuses_a_directory_in_use_and_a_new_one(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """Exit code 4, and 5 where the log is damaged."""
    folder = directory_of(tmp_path / "b", [])
    holder = DataDirectory.open(folder, node_name="b", cluster_name="c")
    assert quorum(folder, WORD, "--yes", *NOBODY) == ExitCode.REFUSED
    assert "stop the node first" in capsys.readouterr().err
    holder.close()
    DataDirectory.open(tmp_path / "new", node_name="b", cluster_name="c").close()
    assert quorum(tmp_path / "new", WORD, "--yes", *NOBODY) == ExitCode.REFUSED
    assert main(["recover", "quorum", WORD]) == ExitCode.USAGE


def test_R16_command_compares_survivors_by_their_last_entry(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    """The later term, then the longer log; not those of the two sides of a recovery."""
    shorter = directory_of(tmp_path / "b", [], kept_in="database")
    longer = directory_of(tmp_path / "c", [entry(ACQUIRE)], name="c")
    assert main(["recover", "quorum", "--compare", str(shorter), str(longer)]) == ExitCode.OK
    assert "take c" in capsys.readouterr().out
    assert main(["recover", "quorum", "--compare", str(shorter), str(longer), "-o", "json"]) == ExitCode.OK
    assert json.loads(capsys.readouterr().out)["take"] == str(longer)
    recover_data_dir(shorter, all_others_are_dead=CLUSTER)
    assert main(["recover", "quorum", "--compare", str(shorter), str(longer)]) == ExitCode.REFUSED


def test_R16_command_ignores_directories_of_no_member_when_it_compares(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    """The operator names all that is left of the cluster; a removed member's may well have the longest log."""
    survivor = directory_of(tmp_path / "c", [], name="c")
    removed = directory_of(tmp_path / "b", [change([("remove", 2)], MembersChange(removed=(2,)))])
    DataDirectory.open(tmp_path / "new", node_name="a", cluster_name="c").close()
    folders = [str(removed), str(tmp_path / "new"), str(survivor)]
    assert main(["recover", "quorum", "--compare", *folders]) == ExitCode.OK
    told = capsys.readouterr()
    assert "take c" in told.out
    assert f"note: {removed} is ignored: b is no member by its own log" in told.err
    assert main(["recover", "quorum", "--compare", *folders, "-o", "json"]) == ExitCode.OK
    document = json.loads(capsys.readouterr().out)
    assert document["take"] == str(survivor)
    assert [entry["data_dir"] for entry in document["ignored"]] == folders[:2]
    assert main(["recover", "quorum", "--compare", *folders[:2]]) == ExitCode.REFUSED
    assert "nothing to compare" in capsys.readouterr().err


def test_R16_command_takes_the_directory_and_the_peers_of_a_configuration(
    tmp_path: Path, living: Living, capsys: pytest.CaptureFixture[str]
):
    """The file says where the directory is and whom to ask; the node's own name must be the directory's."""
    folder = directory_of(tmp_path / "b", [])
    urls = {"a": living.add(name="a", cluster_id=None), "b": "http://127.0.0.1:9", "c": living.add(name="c")}
    peers = ", ".join(
        f'{name} = {{raft = "127.0.0.1:{port}", url = "{url}"}}'
        for port, (name, url) in enumerate(urls.items(), start=1)
    )
    file = tmp_path / "b.toml"
    file.write_text(
        f'[cluster]\nname = "c"\n[node]\nname = "b"\ndata_dir = "{folder}"\n'
        f'[raft]\nlisten = "127.0.0.1:2"\npeers = {{ {peers} }}\n'
    )
    assert main(["recover", "quorum", "--config", str(file), WORD, "--yes"]) == ExitCode.REFUSED
    assert "c answers, and with b that is a quorum" in capsys.readouterr().err
    assert main(["recover", "quorum", "--config", str(file), WORD, "--yes", "--force"]) == ExitCode.OK
    assert survivor_in(folder).voters == ("b",)
