//! The codec alone, without an interpreter: what is written is read back, and what was not written is refused.

#[allow(dead_code)]
#[path = "../src/changes.rs"]
mod changes;
#[allow(dead_code)]
#[path = "../src/codec.rs"]
mod codec;

use bytes::Bytes;
use codec::Malformed;
use protobuf::Message as _;
use raft::eraftpb::{ConfChangeType, ConfChangeV2, Entry, EntryType, Message, MessageType, Snapshot};

fn entry(index: u64, term: u64, data: &'static [u8]) -> Entry {
    Entry {
        index,
        term,
        data: Bytes::from_static(data),
        ..Entry::default()
    }
}

fn append() -> Message {
    let mut change = entry(7, 5, b"\x12\x04\x08\x02\x10\x09");
    change.set_entry_type(EntryType::EntryConfChangeV2);
    let mut message = Message {
        from: 1,
        to: 2,
        term: 5,
        log_term: 3,
        index: 4,
        commit: 4,
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgAppend);
    message.set_entries(vec![entry(5, 3, b""), entry(6, 5, b"command"), change].into());
    message
}

fn snapshot() -> Message {
    let mut snapshot = Snapshot {
        data: Bytes::from_static(b"state"),
        ..Snapshot::default()
    };
    let metadata = snapshot.mut_metadata();
    metadata.index = 9;
    metadata.term = 4;
    metadata.mut_conf_state().voters = vec![1, 2, 3];
    metadata.mut_conf_state().learners = vec![4];
    let mut message = Message {
        from: 1,
        to: 3,
        term: 5,
        ..Message::default()
    };
    message.set_msg_type(MessageType::MsgSnapshot);
    message.set_snapshot(snapshot);
    message
}

fn plain(kind: MessageType) -> Message {
    let mut message = Message {
        from: 3,
        to: 1,
        term: 8,
        log_term: 7,
        index: 6,
        commit: 5,
        commit_term: 4,
        reject_hint: 3,
        reject: true,
        context: Bytes::from_static(b"CampaignTransfer"),
        ..Message::default()
    };
    message.set_msg_type(kind);
    message
}

fn encoded(messages: &[Message]) -> Vec<u8> {
    let mut bytes = Vec::new();
    for message in messages {
        codec::encode_message(&mut bytes, message);
    }
    bytes
}

#[test]
fn messages_are_read_back_when_they_were_written() {
    let messages = [
        append(),
        snapshot(),
        plain(MessageType::MsgAppendResponse),
        plain(MessageType::MsgRequestVote),
        plain(MessageType::MsgRequestVoteResponse),
        plain(MessageType::MsgRequestPreVote),
        plain(MessageType::MsgRequestPreVoteResponse),
        plain(MessageType::MsgHeartbeat),
        plain(MessageType::MsgHeartbeatResponse),
        plain(MessageType::MsgTimeoutNow),
    ];
    let read = codec::decode_messages(&encoded(&messages)).expect("well-formed");
    assert_eq!(read, messages);
}

#[test]
fn messages_are_refused_when_they_are_cut_anywhere() {
    let bytes = encoded(&[append(), snapshot()]);
    let first = encoded(&[append()]).len();
    for end in (1..bytes.len()).filter(|end| *end != first) {
        assert!(codec::decode_messages(&bytes[..end]).is_err(), "cut at {end}");
    }
}

#[test]
fn messages_are_refused_when_the_terms_of_their_entries_fall_or_exceed_their_own() {
    for terms in [[2, 3], [5, 4], [4, 6], [0, 5]] {
        let mut message = append();
        message.set_entries(vec![entry(5, terms[0], b"a"), entry(6, terms[1], b"b")].into());
        let refused = codec::decode_messages(&encoded(&[message]));
        assert_eq!(
            refused,
            Err(Malformed("the term of an entry does not fit")),
            "{terms:?}"
        );
    }
}

#[test]
fn snapshots_are_refused_when_a_member_is_in_them_twice() {
    let mut message = snapshot();
    message.mut_snapshot().mut_metadata().mut_conf_state().learners = vec![3];
    assert!(codec::decode_messages(&encoded(&[message])).is_err());
}

#[test]
fn snapshots_are_refused_when_their_place_or_their_members_do_not_fit() {
    for (index, term, voters) in [(0, 4, vec![1]), (9, 0, vec![1]), (9, 6, vec![1]), (9, 4, vec![])] {
        let mut message = snapshot();
        let metadata = message.mut_snapshot().mut_metadata();
        (metadata.index, metadata.term) = (index, term);
        metadata.mut_conf_state().voters = voters;
        assert!(codec::decode_messages(&encoded(&[message])).is_err());
    }
}

#[test]
fn snapshots_travel_alone_when_there_are_other_messages() {
    let mut heartbeat = plain(MessageType::MsgHeartbeat);
    heartbeat.to = 3;
    let messages = [
        heartbeat.clone(),
        snapshot(),
        heartbeat.clone(),
        heartbeat.clone(),
    ];
    let payloads = codec::payloads(&messages, codec::PAYLOAD_BYTES_MAX);
    let read: Vec<_> = payloads
        .iter()
        .map(|(_, bytes)| codec::decode_messages(bytes).expect("well-formed").len())
        .collect();
    assert_eq!(read, [1, 1, 2]);
    let found = payloads.iter().map(|(_, bytes)| codec::snapshot_in(bytes));
    let found: Vec<_> = found.map(|found| found.expect("alone").is_some()).collect();
    assert_eq!(found, [false, true, false]);
    assert!(codec::snapshot_in(&encoded(&[snapshot(), heartbeat])).is_err());
}

#[test]
fn batches_are_read_back_when_they_were_written() {
    let entries = append().entries.to_vec();
    let blob = codec::encode_batch(&entries);
    assert_eq!(codec::decode_batch(&blob), Ok(entries));
    assert!(codec::encode_batch(&[]).is_empty());
}

#[test]
fn batches_are_refused_when_they_are_cut_extended_or_of_another_version() {
    let blob = codec::encode_batch(&append().entries);
    for end in 0..blob.len() {
        assert!(codec::decode_batch(&blob[..end]).is_err(), "cut at {end}");
    }
    assert_eq!(
        codec::decode_batch(&[&blob[..], b"x"].concat()),
        Err(Malformed("bytes are left over"))
    );
    assert!(codec::decode_batch(&[b"\x02", &blob[1..]].concat()).is_err());
}

#[test]
fn payloads_are_cut_by_peer_and_by_size_when_they_grow() {
    let [mut to_1, mut to_2] = [plain(MessageType::MsgHeartbeat), plain(MessageType::MsgHeartbeat)];
    (to_1.to, to_2.to) = (1, 2);
    let one = encoded(std::slice::from_ref(&to_1)).len();
    let messages = [to_1.clone(), to_2.clone(), to_1.clone(), to_1.clone()];
    let payloads = codec::payloads(&messages, 2 * one);
    let sizes: Vec<(u64, usize)> = payloads.iter().map(|(to, bytes)| (*to, bytes.len())).collect();
    assert_eq!(sizes, [(1, 2 * one), (2, one), (1, one)]);
    assert_eq!(
        codec::decode_messages(&payloads[0].1),
        Ok(vec![to_1.clone(), to_1])
    );
}

#[test]
fn configuration_changes_are_read_as_protobuf_reads_them() {
    let changes = [
        (ConfChangeType::AddNode, 1),
        (ConfChangeType::AddLearnerNode, 300),
        (ConfChangeType::RemoveNode, codec::NUMBER_MAX - 1),
    ];
    for (count, context) in [(1, &b""[..]), (3, &[7; 200][..]), (0, b"")] {
        let bytes = changes::encode_conf_change(&changes[..count], context);
        let mut theirs = ConfChangeV2::default();
        theirs.merge_from_bytes(&bytes).expect("protobuf reads it");
        assert_eq!(changes::decode_conf_change(&bytes), Ok(theirs.clone()));
        let written = theirs.write_to_bytes().expect("protobuf writes it");
        assert_eq!(changes::decode_conf_change(&written), Ok(theirs));
    }
}

#[test]
fn configuration_changes_are_refused_when_they_are_not_what_is_written() {
    // A group (the recursion of RUSTSEC-2024-0437), an unknown field, an id of 0, a varint without an end.
    for bytes in [
        &b"\x1b\x1b\x1b"[..],
        b"\x20\x01",
        b"\x12\x04\x08\x00\x10\x00",
        &[0x08; 1],
        &[0xff; 12],
    ] {
        assert!(changes::decode_conf_change(bytes).is_err(), "{bytes:?}");
    }
}
