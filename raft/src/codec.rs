//! The engine's own bytes: messages between nodes, and batches of log entries as they are stored.
//!
//! Nothing that came over the network or from a disk may reach the protobuf parser of the `raft` crate
//! (RUSTSEC-2024-0437). This codec is flat: no recursion, no optional fields, little-endian fixed-width numbers.
//! Every count and length is checked against the bytes that are left before anything is allocated, and every number
//! against [`NUMBER_MAX`], so that arithmetic on it cannot overflow. Entries carry no index: they follow one another
//! from a first index, so a gap cannot even be written down; and their terms never fall.
//!
//! It must never judge: whether a well-formed message is let in is decided in `engine.rs` (R3).

use std::ops::RangeInclusive;

use bytes::{Buf, Bytes};
use raft::eraftpb::{ConfState, Entry, EntryType, Message, MessageType, Snapshot};

/// A payload, as one frame of a transport carries it, is never longer than this.
pub const PAYLOAD_BYTES_MAX: usize = 4 << 20;
/// One command; also the most bytes of commands in one message that holds more than one.
pub const COMMAND_BYTES_MAX: usize = 1 << 20;
/// The data of a snapshot: it travels in one message, and a message in one payload.
pub const SNAPSHOT_BYTES_MAX: usize = 3 << 20;
/// What a heartbeat carries for a read index.
pub const CONTEXT_BYTES_MAX: usize = 1024;
/// Terms, indexes and ids lie below this.
pub const NUMBER_MAX: u64 = 1 << 62;
const MEMBERS_MAX: usize = 1024;

const BATCH_VERSION: u8 = 1;
const ENTRY_BYTES_MIN: usize = 8 + 1 + 4;
/// What a payload with a snapshot starts with.
const SNAPSHOT_CODE: u8 = MessageType::MsgSnapshot as u8;

/// The bytes are not what this codec writes; the text says what is wrong.
#[derive(Debug, PartialEq, Eq)]
pub struct Malformed(pub &'static str);

pub type Decoded<T> = Result<T, Malformed>;

/// The message types of raft-rs that can be written, with the names that Python sees.
const KINDS: [(MessageType, &str); 14] = [
    (MessageType::MsgHup, "hup"),
    (MessageType::MsgPropose, "propose"),
    (MessageType::MsgAppend, "append"),
    (MessageType::MsgAppendResponse, "append_response"),
    (MessageType::MsgRequestVote, "request_vote"),
    (MessageType::MsgRequestVoteResponse, "request_vote_response"),
    (MessageType::MsgSnapshot, "snapshot"),
    (MessageType::MsgHeartbeat, "heartbeat"),
    (MessageType::MsgHeartbeatResponse, "heartbeat_response"),
    (MessageType::MsgTransferLeader, "transfer_leader"),
    (MessageType::MsgTimeoutNow, "timeout_now"),
    (MessageType::MsgReadIndex, "read_index"),
    (MessageType::MsgRequestPreVote, "request_pre_vote"),
    (
        MessageType::MsgRequestPreVoteResponse,
        "request_pre_vote_response",
    ),
];

/// The name of a message type, or `None` for one that this codec does not write.
pub fn kind_name(kind: MessageType) -> Option<&'static str> {
    KINDS.iter().find(|(k, _)| *k == kind).map(|(_, name)| *name)
}

/// The message type of a name.
pub fn kind_of(name: &str) -> Option<MessageType> {
    KINDS.iter().find(|(_, n)| *n == name).map(|(kind, _)| *kind)
}

/// What an entry is to the caller: `"command"`, `"empty"` (the first entry of a term) or `"conf_change"`.
pub fn entry_kind(entry: &Entry) -> &'static str {
    match (entry.get_entry_type(), entry.data.is_empty()) {
        (EntryType::EntryNormal, true) => "empty",
        (EntryType::EntryNormal, false) => "command",
        _ => "conf_change",
    }
}

/// The entry that [`entry_kind`] calls `kind`.
pub fn entry_of(index: u64, term: u64, kind: &str, data: Bytes) -> Decoded<Entry> {
    let entry_type = match (kind, data.is_empty()) {
        ("command", false) | ("empty", true) => EntryType::EntryNormal,
        ("conf_change", _) => EntryType::EntryConfChangeV2,
        _ => return Err(Malformed("the kind of an entry does not fit its data")),
    };
    if data.len() > COMMAND_BYTES_MAX {
        return Err(Malformed("the data of an entry is too long"));
    }
    Ok(Entry {
        index,
        term,
        entry_type,
        data,
        ..Entry::default()
    })
}

/// Whether [`decode_batch`] would read these entries back.
pub fn check_batch(entries: &[Entry]) -> Decoded<()> {
    let (mut index, mut term) = (entries.first().map_or(1, |entry| entry.index), 1);
    for entry in entries {
        if entry.index != index || !(1..NUMBER_MAX).contains(&index) {
            return Err(Malformed("the indexes do not follow one another from 1 or above"));
        }
        if !(term..NUMBER_MAX).contains(&entry.term) {
            return Err(Malformed("the term of an entry does not fit"));
        }
        (index, term) = (index + 1, entry.term);
    }
    Ok(())
}

/// One blob of entries as the log store keeps it; empty for no entries.
pub fn encode_batch(entries: &[Entry]) -> Vec<u8> {
    let Some(first) = entries.first() else {
        return Vec::new();
    };
    let mut out = Vec::with_capacity(13 + entries_bytes(entries));
    out.push(BATCH_VERSION);
    out.extend_from_slice(&first.index.to_le_bytes());
    put_entries(&mut out, first.index, entries);
    out
}

/// Read a blob of [`encode_batch`] back. The entries share one copy of its bytes.
pub fn decode_batch(blob: &[u8]) -> Decoded<Vec<Entry>> {
    let mut reader = Reader::new(blob);
    if reader.u8()? != BATCH_VERSION {
        return Err(Malformed("unknown version of a stored batch"));
    }
    let first = reader.number()?;
    let entries = reader.entries(first, 1..=NUMBER_MAX)?;
    if entries.is_empty() || first == 0 {
        return Err(Malformed("a stored batch without entries, or with index 0"));
    }
    reader.end()?;
    Ok(entries)
}

/// Append one message to `out`.
pub fn encode_message(out: &mut Vec<u8>, message: &Message) {
    let kind = message.get_msg_type();
    out.reserve(88 + message.context.len() + entries_bytes(&message.entries));
    out.push(kind as u8);
    out.push(u8::from(message.reject));
    for number in [
        message.from,
        message.to,
        message.term,
        message.log_term,
        message.index,
        message.commit,
        message.commit_term,
        message.reject_hint,
    ] {
        out.extend_from_slice(&number.to_le_bytes());
    }
    assert!(message.context.len() <= CONTEXT_BYTES_MAX, "context too long");
    out.extend_from_slice(&(message.context.len() as u16).to_le_bytes());
    out.extend_from_slice(&message.context);
    match kind {
        MessageType::MsgAppend => put_entries(out, message.index + 1, &message.entries),
        MessageType::MsgSnapshot => put_snapshot(out, message.get_snapshot()),
        _ => assert!(message.entries.is_empty(), "entries in a {kind:?}"),
    }
}

/// Read all messages of a payload, or none. The entries share one copy of its bytes.
pub fn decode_messages(payload: &[u8]) -> Decoded<Vec<Message>> {
    if payload.len() > PAYLOAD_BYTES_MAX {
        return Err(Malformed("payload too long"));
    }
    let mut reader = Reader::new(payload);
    let mut messages = Vec::new();
    while reader.bytes.has_remaining() {
        messages.push(reader.message()?);
    }
    Ok(messages)
}

/// The snapshot of a payload that starts with one, which must then be all that is in it.
pub fn snapshot_in(payload: &[u8]) -> Decoded<Option<Snapshot>> {
    if payload.first() != Some(&SNAPSHOT_CODE) {
        return Ok(None);
    }
    match decode_messages(payload)?.as_mut_slice() {
        [message] => Ok(Some(message.take_snapshot())),
        _ => Err(Malformed("a snapshot does not travel alone")),
    }
}

/// All messages for one peer joined in their order, cut where a payload would become longer than `limit`. A snapshot
/// travels alone: its receiver fetches the content before anything of the payload is stepped.
pub fn payloads(messages: &[Message], limit: usize) -> Vec<(u64, Vec<u8>)> {
    let mut payloads: Vec<(u64, Vec<u8>)> = Vec::new();
    for message in messages {
        let alone = message.get_msg_type() == MessageType::MsgSnapshot;
        let last = payloads.iter().rposition(|(to, _)| *to == message.to);
        let open = last.filter(|at| !alone && payloads[*at].1.first() != Some(&SNAPSHOT_CODE));
        let at = open.unwrap_or_else(|| {
            payloads.push((message.to, Vec::new()));
            payloads.len() - 1
        });
        let payload = &mut payloads[at].1;
        let start = payload.len();
        encode_message(payload, message);
        if start > 0 && payload.len() > limit {
            let next = payload.split_off(start);
            payloads.push((message.to, next));
        }
    }
    payloads
}

fn entries_bytes(entries: &[Entry]) -> usize {
    entries.iter().map(|e| ENTRY_BYTES_MIN + e.data.len()).sum()
}

fn put_entries(out: &mut Vec<u8>, first: u64, entries: &[Entry]) {
    out.extend_from_slice(&(entries.len() as u32).to_le_bytes());
    for (expected, entry) in (first..).zip(entries) {
        assert_eq!(entry.index, expected, "entries must follow one another");
        assert!(entry.context.is_empty(), "entries carry no context");
        assert_ne!(entry.get_entry_type(), EntryType::EntryConfChange);
        out.extend_from_slice(&entry.term.to_le_bytes());
        out.push(entry.get_entry_type() as u8);
        out.extend_from_slice(&(entry.data.len() as u32).to_le_bytes());
        out.extend_from_slice(&entry.data);
    }
}

fn put_snapshot(out: &mut Vec<u8>, snapshot: &Snapshot) {
    let metadata = snapshot.get_metadata();
    let conf = metadata.get_conf_state();
    assert!(conf.voters_outgoing.is_empty(), "snapshots are never joint");
    out.extend_from_slice(&metadata.index.to_le_bytes());
    out.extend_from_slice(&metadata.term.to_le_bytes());
    for members in [&conf.voters, &conf.learners] {
        out.extend_from_slice(&(members.len() as u32).to_le_bytes());
        for id in members {
            out.extend_from_slice(&id.to_le_bytes());
        }
    }
    out.extend_from_slice(&(snapshot.data.len() as u32).to_le_bytes());
    out.extend_from_slice(&snapshot.data);
}

struct Reader {
    bytes: Bytes,
}

impl Reader {
    fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: Bytes::copy_from_slice(bytes),
        }
    }

    fn need(&self, count: usize) -> Decoded<()> {
        if self.bytes.remaining() < count {
            return Err(Malformed("ends too early"));
        }
        Ok(())
    }

    fn end(&self) -> Decoded<()> {
        if self.bytes.has_remaining() {
            return Err(Malformed("bytes are left over"));
        }
        Ok(())
    }

    fn u8(&mut self) -> Decoded<u8> {
        self.need(1)?;
        Ok(self.bytes.get_u8())
    }

    fn u16(&mut self) -> Decoded<usize> {
        self.need(2)?;
        Ok(usize::from(self.bytes.get_u16_le()))
    }

    fn u32(&mut self) -> Decoded<usize> {
        self.need(4)?;
        Ok(self.bytes.get_u32_le() as usize)
    }

    fn number(&mut self) -> Decoded<u64> {
        self.need(8)?;
        let number = self.bytes.get_u64_le();
        if number >= NUMBER_MAX {
            return Err(Malformed("number out of range"));
        }
        Ok(number)
    }

    fn data(&mut self, count: usize) -> Decoded<Bytes> {
        self.need(count)?;
        Ok(self.bytes.split_to(count))
    }

    fn entries(&mut self, first: u64, terms: RangeInclusive<u64>) -> Decoded<Vec<Entry>> {
        let count = self.u32()?;
        if count > self.bytes.remaining() / ENTRY_BYTES_MIN {
            return Err(Malformed("more entries than bytes"));
        }
        let (mut lowest, highest) = terms.into_inner();
        let mut entries = Vec::with_capacity(count);
        for index in (first..).take(count) {
            let term = self.number()?;
            if !(lowest..=highest).contains(&term) {
                return Err(Malformed("the term of an entry does not fit"));
            }
            lowest = term;
            let entry_type = match self.u8()? {
                0 => EntryType::EntryNormal,
                2 => EntryType::EntryConfChangeV2,
                _ => return Err(Malformed("unknown kind of entry")),
            };
            let length = self.u32()?;
            entries.push(Entry {
                index,
                term,
                entry_type,
                data: self.data(length)?,
                ..Entry::default()
            });
        }
        Ok(entries)
    }

    fn members(&mut self) -> Decoded<Vec<u64>> {
        let count = self.u32()?;
        if count > MEMBERS_MAX {
            return Err(Malformed("too many members"));
        }
        (0..count).map(|_| self.number()).collect()
    }

    fn snapshot(&mut self, message_term: u64) -> Decoded<Snapshot> {
        let mut snapshot = Snapshot::default();
        let metadata = snapshot.mut_metadata();
        metadata.index = self.number()?;
        metadata.term = self.number()?;
        if metadata.index == 0 || !(1..=message_term).contains(&metadata.term) {
            return Err(Malformed("the index or the term of a snapshot does not fit"));
        }
        let conf = metadata.mut_conf_state();
        conf.voters = self.members()?;
        conf.learners = self.members()?;
        if conf.voters.is_empty() || !distinct_members(conf) {
            return Err(Malformed("no voter, a member twice, or with id 0"));
        }
        let length = self.u32()?;
        snapshot.data = self.data(length)?;
        Ok(snapshot)
    }

    fn message(&mut self) -> Decoded<Message> {
        let code = self.u8()?;
        let kind = KINDS.iter().find(|(kind, _)| *kind as u8 == code);
        let (kind, _) = *kind.ok_or(Malformed("unknown kind of message"))?;
        let mut message = Message::default();
        message.set_msg_type(kind);
        message.reject = match self.u8()? {
            0 => false,
            1 => true,
            _ => return Err(Malformed("a truth value that is neither 0 nor 1")),
        };
        message.from = self.number()?;
        message.to = self.number()?;
        message.term = self.number()?;
        message.log_term = self.number()?;
        message.index = self.number()?;
        message.commit = self.number()?;
        message.commit_term = self.number()?;
        message.reject_hint = self.number()?;
        let length = self.u16()?;
        if length > CONTEXT_BYTES_MAX {
            return Err(Malformed("context too long"));
        }
        message.context = self.data(length)?;
        match kind {
            MessageType::MsgAppend => {
                let first = message.index + 1;
                let terms = message.log_term.max(1)..=message.term;
                message.set_entries(self.entries(first, terms)?.into());
            }
            MessageType::MsgSnapshot => message.set_snapshot(self.snapshot(message.term)?),
            _ => {}
        }
        Ok(message)
    }
}

/// Whether every id is used once and none is 0.
pub fn distinct_members(conf: &ConfState) -> bool {
    let mut ids: Vec<u64> = [conf.voters.as_slice(), conf.learners.as_slice()].concat();
    let count = ids.len();
    ids.sort_unstable();
    ids.dedup();
    ids.len() == count && ids.first() != Some(&0)
}
