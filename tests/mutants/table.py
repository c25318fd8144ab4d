"""The mutants: each breaks one rule on purpose. It imports nothing of the product."""

from __future__ import annotations

from mutants.mechanism import Mutant

_CONSENSUS = "src/tenure/core/consensus.py"
_HOLDING = "src/tenure/core/holding.py"
_MEMBER = "src/tenure/core/member.py"
_FSM = "src/tenure/core/fsm.py"
_INSTANTS = "src/tenure/instants.py"
_JUDGE = "src/tenure/fence/judge.py"
_CHECK = "src/tenure/fence/queries/create_check.sql"
_LEASE = "tests/unit/test_rules_lease.py::test_"
_WORK = "tests/unit/test_rules_liveness_of_work.py::test_"
_RAFT = "tests/unit/test_rules_raft.py::test_"
_WRITES = "tests/integration/test_fence_writes.py::test_"
_JUDGED = "tests/unit/test_fence_judge.py::test_"
_RELEASE = (
    "            self.proposals.append("
    "commands.encode(commands.Release(self._raft_id, self.term, self._incarnation)))\n"
)


_OF_THE_ENGINE = [
    Mutant(
        "no_vote_embargo",
        "R6",
        "a member votes at once after its start",
        _CONSENSUS,
        "        return elapsed_for_waiter(self._started, now) < embargo_ns",
        "        return False",
        (_RAFT + "R6_restarted_voter_does_not_vote_for_one_election_timeout",),
    ),
    Mutant(
        "vote_not_persisted",
        "R1",
        "the vote does not reach the disk",
        _CONSENSUS,
        "                hard_state=ready.hard_state,",
        "                hard_state=ready.hard_state and (ready.hard_state[0], 0, ready.hard_state[2]),",
    ),
    Mutant(
        "answers_before_fsync",
        "R1",
        "every message leaves before what it speaks of is durable",
        _CONSENSUS,
        "        return not ready.term_or_vote_changed and len(self.engine.voters) > 1",
        "        return True",
        (_RAFT + "R1_nothing_overtakes_the_fsync_of_a_new_term_when_one_voter_has_a_learner",),
    ),
    Mutant(
        "ticks_after_messages",
        "R5",
        "after a pause the messages that wait are taken before the ticks that are owed",
        _CONSENSUS,
        "        if now.raw_ns >= self._tick_due_raw_ns:\n"
        "            self._run_owed_ticks(now)\n"
        "        effects = self._feed_engine(now, stands=stands) if self._waiting else []\n",
        "        effects = self._feed_engine(now, stands=stands) if self._waiting else []\n"
        "        if now.raw_ns >= self._tick_due_raw_ns:\n"
        "            self._run_owed_ticks(now)\n",
        (_RAFT + "R5_owed_ticks_run_before_queued_messages",),
    ),
    Mutant(
        "members_change_after_it_is_applied",
        "R12",
        "the engine is told that a change of the members is applied before it is",
        _CONSENSUS,
        "        for _, _, kind, data in advanced.committed:\n"
        '            if kind == "conf_change":\n'
        "                self._apply_conf_change(data)\n"
        "        if advanced.committed:\n"
        "            self.engine.applied_to(advanced.committed[-1][0])\n",
        "        if advanced.committed:\n"
        "            self.engine.applied_to(advanced.committed[-1][0])\n"
        "        for _, _, kind, data in advanced.committed:\n"
        '            if kind == "conf_change":\n'
        "                self._apply_conf_change(data)\n",
    ),
    Mutant(
        "loss_of_office_unseen",
        "R12",
        "a member that another leader has replaced keeps its lease",
        _MEMBER,
        "            machine.deposed(now, LossReason.REMOVED if removed else LossReason.DEPOSED)",
        "            pass",
        (_RAFT + "R12_losing_leadership_ends_the_lease_before_any_fsync",),
    ),
]


_OF_THE_LEASE = [
    Mutant(
        "lease_from_receipt",
        "R8",
        "a lease runs from the answer and not from before the question",
        _HOLDING,
        "        self.span = LeaseSpan(started, self._duration_ns)",
        "        self.span = LeaseSpan(now, self._duration_ns)",
        (_LEASE + "R8_lease_runs_from_before_the_request_when_acknowledgements_are_late",),
    ),
    Mutant(
        "wall_clock_in_the_lease",
        "R11",
        "one of the two clocks is the one that people set",
        "src/tenure/node/clocks.py",
        "time.CLOCK_BOOTTIME",
        "time.CLOCK_REALTIME",
        (_LEASE + "R11_clocks_are_those_that_nobody_sets",),
    ),
    Mutant(
        "one_clock_for_holders",
        "R11",
        "a holder does not count the time for which its machine slept",
        _INSTANTS,
        "    return max(raw, boottime)",
        "    return raw",
        (_LEASE + "R11_holder_counts_the_larger_and_waiter_the_smaller_elapsed_time",),
    ),
    Mutant(
        "rate_error_ignored",
        "R9",
        "the wait takes every clock for a perfect one",
        _INSTANTS,
        "    return -(-numerator // (PPM - rate_error_ppm)) + epsilon_ns",
        "    return cover_ns",
        (_LEASE + "R9_slow_clock_of_the_old_and_fast_clock_of_the_new_leader_stay_within_the_wait",),
    ),
    Mutant(
        "no_wait_out",
        "R9",
        "a new leader does not wait the older leases out",
        _HOLDING,
        "        return elapsed_for_waiter(self._elected_at, now) >= self._wait_ns",
        "        return True",
        (_LEASE + "R9_new_leader_waits_the_old_lease_out_when_the_election_was_forced",),
    ),
    Mutant(
        "wait_for_the_own_lease_only",
        "R9",
        "a new leader waits for as long as its own lease is, whatever the older one was",
        _HOLDING,
        "        if state.holding is None:\n            return own, own_rate\n",
        "        if state is not None:\n            return own, own_rate\n",
        (_LEASE + "R9_wait_covers_a_longer_lease_that_a_smaller_acquire_hides",),
    ),
    Mutant(
        "cover_ignored",
        "R9",
        "an early ACQUIRE hides the older, longer lease behind it",
        _HOLDING,
        "            max(own, state.holding.cover_ns),",
        "            max(own, state.holding.duration_ns),",
        (_LEASE + "R9_wait_covers_a_longer_lease_that_a_smaller_acquire_hides",),
    ),
    Mutant(
        "release_while_waiting",
        "R9",
        "a leader that has not waited the older leases out lets its successor skip the wait",
        _HOLDING,
        "        self._left_at = now\n        self.phase = advance(self.phase, Step.ENDED)\n"
        "        self.leave = True\n",
        "        self._left_at = now\n        self.phase = advance(self.phase, Step.ENDED)\n"
        + _RELEASE.replace("            self", "        self")
        + "        self.leave = True\n",
        (_LEASE + "R9_leader_that_still_waits_never_releases",),
    ),
    Mutant(
        "release_without_stopping",
        "R10",
        "RELEASE is written while the leadership goes on",
        _HOLDING,
        "            self._revoke(reason)\n        if self.phase is Phase.LEADING:\n",
        "            pass\n        if self.phase is Phase.LEADING:\n" + _RELEASE,
    ),
    Mutant(
        "release_before_the_body_returned",
        "R9",
        "RELEASE is written although the work of the leadership has not returned",
        _HOLDING,
        "            self.phase = advance(self.phase, Step.ENDED)\n        else:\n",
        "            self.phase = advance(self.phase, Step.ENDED)\n" + _RELEASE + "        else:\n",
        (_LEASE + "R9_release_is_proposed_only_after_the_body_returned",),
    ),
    Mutant(
        "hung_body_stands_for_election",
        "R10",
        "a member whose earlier work has not returned campaigns all the same",
        _MEMBER,
        "stands=machine.may_stand(now), ",
        "stands=True, ",
        ("tests/unit/test_review_core.py::test_R10_member_with_a_hung_body_neither_campaigns_nor_takes_a_transfer",),
    ),
    Mutant(
        "lease_kept_on_timeout_now",
        "R10",
        "the office is handed over while the lease goes on",
        _MEMBER,
        "        self._transfer_to = to\n        self.holding.end(reason, now)\n",
        "        self._transfer_to = to\n        self.holding.leave = True\n",
    ),
    Mutant(
        "lapsed_lease_goes_on",
        "R8",
        "a leader whose lease has lapsed goes on leading",
        _HOLDING,
        "        if self.phase in GRANTED and not self._lasts(now):",
        "        if False:",
    ),
    Mutant(
        "renewal_without_disk",
        "R13",
        "an idle leader goes on renewing although its disk does not answer",
        _HOLDING,
        "        self.disk_wanted = idle is None or idle >= self._duration_ns > 0\n",
        "        self.disk_wanted = False\n",
        (_WORK + "R13_lease_of_an_idle_leader_lapses_within_two_leases_when_its_disk_hangs",),
    ),
    Mutant(
        "renewal_without_application",
        "R13",
        "a leader goes on renewing although its application hangs",
        _HOLDING,
        "        if self.phase in RENEWING and self._application_stalls(now):",
        "        if False:",
        (_WORK + "R13_leadership_ends_when_the_application_hangs_and_another_member_leads",),
    ),
    Mutant(
        "early_work_is_leased",
        "R9",
        "what fenced-only lets begin before the wait is over is granted as a lease",
        _HOLDING,
        "Grant(self.term, self.credential, self.span, leased=waited)",
        "Grant(self.term, self.credential, self.span)",
        (
            "tests/unit/test_rules_wait_out.py::test_R9_fenced_transactions_begin_before_the_wait_and_the_lease_after_it",
        ),
    ),
]


_OF_THE_TOKEN = [
    Mutant(
        "floor_ignored",
        "R15",
        "the token is counted without the highest one that the fence has seen",
        _FSM,
        "    return generation, max(last_count, floor_count) + 1",
        "    return generation, last_count + 1",
        (_LEASE + "R15_token_lies_above_the_own_count_and_the_floor",),
    ),
    Mutant(
        "token_from_a_local_counter",
        "R15",
        "the token is not that of the committed entry, but one that the winner counts by itself",
        _HOLDING,
        "        self.token = holding.token\n",
        "        self.token = self._sequence + 1\n",
    ),
    Mutant(
        "token_minted_again_while_holding",
        "R15",
        "the same holding acquires a second time",
        _HOLDING,
        "        holding = state.holding\n        if holding is None or self.phase is not Phase.ACQUIRING:\n"
        "            return\n",
        "        holding = state.holding\n        if holding is None or self.phase is not Phase.ACQUIRING:\n"
        "            return\n"
        "        if holding.token % 2:\n            self.phase = Phase.READING\n"
        "            self._propose_acquire(0, state, now)\n            return\n",
        (_LEASE + "R15_token_is_never_minted_again_while_holding",),
    ),
    Mutant(
        "ambiguous_raise_taken_for_done",
        "R20",
        "a raise whose outcome is unknown counts as one that was granted",
        _HOLDING,
        "        else:\n            self.reason, self._retry_at = answer.message, now\n\n    def refused",
        "        else:\n            self._raised, self.reason = True, None\n\n    def refused",
    ),
]


_OF_THE_FENCE = [
    Mutant(
        "raise_with_the_same_token",
        "R20",
        "a raise to the token that the fence holds is granted",
        _JUDGE,
        "    if credential.token <= row.token:",
        "    if credential.token < row.token:",
        (_JUDGED + "R20_raise_is_refused_when_one_thing_differs",),
    ),
    Mutant(
        "raise_without_the_version",
        "R20",
        "a raise is granted although the fence moved since the raiser proved that it leads",
        _JUDGE,
        "    if request.expected != Expected(row.version, live.timeline, live.server_start):",
        "    if False:",
        (_JUDGED + "R20_raise_is_refused_when_one_thing_differs",),
    ),
    Mutant(
        "generation_ignored",
        "R16",
        "the fence takes a raise of a cluster that a forced recovery has replaced",
        _JUDGE,
        "    if me.generation < generation:",
        "    if False:",
        (_JUDGED + "R20_raise_is_refused_when_one_thing_differs",),
    ),
    Mutant(
        "lineage_ignored",
        "R16",
        "two recoveries of one cluster may both raise the fence",
        _JUDGE,
        "    if elector_id is not None and me.generation == generation and lineage != me.lineage:",
        "    if False:",
        (_JUDGED + "R20_raise_is_refused_when_one_thing_differs",),
    ),
    Mutant(
        "copy_of_the_cluster_unseen",
        "R16",
        "a count above the own is taken for a floor",
        _JUDGE,
        "    if claimed and row.token % (1 << GENERATION_SHIFT) > last_count:",
        "    if False:",
        (_JUDGED + "R15_R16_floor_is_the_fences_token_or_the_reason_not_to_campaign",),
    ),
    Mutant(
        "sql_nonce_ignored",
        "R17",
        "the database compares the token and not the nonce",
        _CHECK,
        "    IF credential <> fence.token || '.' || fence.nonce THEN",
        "    IF split_part(credential, '.', 1) <> fence.token::text THEN",
        (
            "tests/integration/test_fence_transaction.py::"
            "test_refusal_tells_two_holdings_of_one_token_apart_when_the_fence_was_rebased",
            "tests/integration/test_fence_raise.py::test_R17_another_elector_is_refused_until_the_operator_rebases",
        ),
    ),
    Mutant(
        "sql_older_token_passes",
        "R18",
        "the database takes every token that is not above the fence's",
        _CHECK,
        "    IF credential <> fence.token || '.' || fence.nonce THEN",
        "    IF split_part(credential, '.', 1)::bigint > fence.token THEN",
        (_WRITES + "R18_R26_every_kind_of_statement_is_refused_when_its_credential_is_not_the_present_one",),
    ),
    Mutant(
        "sql_fence_read_without_a_lock",
        "R18",
        "the database reads the fence without holding it still until the write is committed",
        _CHECK,
        "WHERE f.resource = TG_ARGV[0] FOR SHARE;",
        "WHERE f.resource = TG_ARGV[0];",
        (_WRITES + "R18_case_A_raise_waits_for_the_writer_that_was_checked_first",),
    ),
    Mutant(
        "sql_fence_read_outside_the_statement",
        "R18",
        "the database compares with the fence as it was when the statement began",
        _CHECK,
        "LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp\n"
        "AS $tenure$\n"
        "DECLARE\n"
        "    fence {fence}%ROWTYPE;\n"
        "    resource CONSTANT text := TG_ARGV[0];\n"
        "    credential CONSTANT text := "
        "nullif(current_setting('tenure.credential_' || TG_ARGV[0], true), '');\n"
        "BEGIN\n"
        "    SELECT f.* INTO fence FROM {fence} AS f WHERE f.resource = TG_ARGV[0] FOR SHARE;",
        "LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp\n"
        "AS $tenure$\n"
        "DECLARE\n"
        "    fence {fence}%ROWTYPE;\n"
        "    resource CONSTANT text := TG_ARGV[0];\n"
        "    credential CONSTANT text := "
        "nullif(current_setting('tenure.credential_' || TG_ARGV[0], true), '');\n"
        "BEGIN\n"
        "    SELECT f.* INTO fence FROM {fence} AS f WHERE f.resource = TG_ARGV[0];",
        (_WRITES + "R18_case_C_writer_is_refused_when_its_snapshot_is_older_than_the_raise",),
    ),
    Mutant(
        "sql_timeline_ignored",
        "R23",
        "the database does not see that another server took its place",
        _CHECK,
        "    IF fence.timeline <> substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8)\n"
        "        OR fence.server_start <> pg_postmaster_start_time()",
        "    IF false",
        ("tests/integration/test_fence_server.py::test_R23_timeline_alone_is_enough_to_refuse",),
    ),
    Mutant(
        "ambiguous_commit_counts_as_failed",
        "R29",
        "a session that is lost in its statement is answered as if nothing had been written",
        "payments/src/payment_service/session.py",
        '            return OutcomeUnknown(f"the session was lost while the statement ran: {error}")',
        '            return DatabaseUnavailable(f"the session was lost while the statement ran: {error}")',
        (
            "tests/integration/test_payments_outcomes.py::"
            "test_R29_outcome_is_unknown_and_the_key_tells_when_the_session_dies_in_the_statement",
        ),
    ),
]


MUTANTS = {mutant.name: mutant for mutant in [*_OF_THE_ENGINE, *_OF_THE_LEASE, *_OF_THE_TOKEN, *_OF_THE_FENCE]}
