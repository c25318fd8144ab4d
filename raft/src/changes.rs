//! Changes of the members as bytes: what raft-rs writes and reads as `ConfChangeV2` of protobuf.
//!
//! These bytes come back from a disk, so they must never reach the protobuf parser either (see `codec.rs`).

use bytes::Bytes;
use raft::eraftpb::{ConfChangeSingle, ConfChangeTransition, ConfChangeType, ConfChangeV2};

use crate::codec::{Decoded, Malformed, NUMBER_MAX};

/// What a change of the members is to the caller.
const CHANGES: [(ConfChangeType, &str); 3] = [
    (ConfChangeType::AddNode, "add_voter"),
    (ConfChangeType::AddLearnerNode, "add_learner"),
    (ConfChangeType::RemoveNode, "remove"),
];

/// The name of one change of the members.
pub fn change_name(kind: ConfChangeType) -> &'static str {
    CHANGES
        .iter()
        .find(|(k, _)| *k == kind)
        .map_or("", |(_, name)| name)
}

/// The change of the members that a name stands for.
pub fn change_of(name: &str) -> Option<ConfChangeType> {
    CHANGES.iter().find(|(_, n)| *n == name).map(|(kind, _)| *kind)
}

/// A configuration change in the form that raft-rs itself reads when it is proposed (`ConfChangeV2` of protobuf).
pub fn encode_conf_change(changes: &[(ConfChangeType, u64)], context: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, id) in changes {
        let mut single = vec![0x08, *kind as u8, 0x10];
        put_varint(&mut single, *id);
        out.extend_from_slice(&[0x12, single.len() as u8]);
        out.extend_from_slice(&single);
    }
    if !context.is_empty() {
        out.push(0x1a);
        put_varint(&mut out, context.len() as u64);
        out.extend_from_slice(context);
    }
    out
}

/// Read a configuration change. Flat and strict where a protobuf parser would recurse into unknown fields.
pub fn decode_conf_change(data: &[u8]) -> Decoded<ConfChangeV2> {
    let mut change = ConfChangeV2::default();
    let mut rest = data;
    while !rest.is_empty() {
        match varint(&mut rest)? {
            0x08 => change.set_transition(match varint(&mut rest)? {
                0 => ConfChangeTransition::Auto,
                1 => ConfChangeTransition::Implicit,
                2 => ConfChangeTransition::Explicit,
                _ => return Err(Malformed("unknown transition")),
            }),
            0x12 => change.mut_changes().push(single(delimited(&mut rest)?)?),
            0x1a => change.context = Bytes::copy_from_slice(delimited(&mut rest)?),
            _ => return Err(Malformed("unknown field in a configuration change")),
        }
    }
    Ok(change)
}

fn single(mut rest: &[u8]) -> Decoded<ConfChangeSingle> {
    let mut change = ConfChangeSingle::default();
    while !rest.is_empty() {
        match (varint(&mut rest)?, varint(&mut rest)?) {
            (0x08, 0) => change.set_change_type(ConfChangeType::AddNode),
            (0x08, 1) => change.set_change_type(ConfChangeType::RemoveNode),
            (0x08, 2) => change.set_change_type(ConfChangeType::AddLearnerNode),
            (0x10, id) if (1..NUMBER_MAX).contains(&id) => change.node_id = id,
            _ => return Err(Malformed("unknown field in a single change")),
        }
    }
    if change.node_id == 0 {
        return Err(Malformed("a change without an id"));
    }
    Ok(change)
}

fn put_varint(out: &mut Vec<u8>, mut number: u64) {
    while number >= 0x80 {
        out.push((number as u8) | 0x80);
        number >>= 7;
    }
    out.push(number as u8);
}

fn varint(rest: &mut &[u8]) -> Decoded<u64> {
    let mut number = 0;
    for shift in (0..63).step_by(7) {
        let (byte, tail) = rest.split_first().ok_or(Malformed("ends too early"))?;
        *rest = tail;
        number |= u64::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Malformed("number out of range"))
}

fn delimited<'a>(rest: &mut &'a [u8]) -> Decoded<&'a [u8]> {
    let length = varint(rest)?;
    if length > rest.len() as u64 {
        return Err(Malformed("ends too early"));
    }
    let (head, tail) = rest.split_at(length as usize);
    *rest = tail;
    Ok(head)
}
