//! The image alone: what stays of the log beside a snapshot, and what raft-rs is told of it.

#[allow(dead_code)]
#[path = "../src/image.rs"]
mod image;

use bytes::Bytes;
use image::Image;
use raft::eraftpb::{ConfState, Entry, Snapshot};
use raft::{Error, GetEntriesContext, Storage, StorageError};

fn entries(first: u64, terms: &[u64]) -> Vec<Entry> {
    let entries = (first..).zip(terms).map(|(index, term)| Entry {
        index,
        term: *term,
        data: Bytes::from_static(b"data"),
        ..Entry::default()
    });
    entries.collect()
}

fn voters() -> ConfState {
    ConfState::from((vec![1, 2], vec![3]))
}

/// Entries 1 to 6 of the terms 1 1 2 2 3 3.
fn image() -> Image {
    let mut image = Image::new(0, 0, voters(), Bytes::new());
    assert!(image.append(entries(1, &[1, 1, 2, 2, 3, 3])));
    image
}

fn read(image: &Image, low: u64, high: u64) -> Result<Vec<u64>, Error> {
    let read = image.entries(low, high, None, GetEntriesContext::empty(false))?;
    Ok(read.iter().map(|entry| entry.index).collect())
}

#[test]
fn the_last_entries_stay_when_they_are_kept() {
    let mut image = image();
    image.compact(5, voters(), Bytes::from_static(b"at 5"), 2);
    assert_eq!(
        (image.start(), image.first_index().unwrap(), image.last()),
        (3, 4, 6)
    );
    assert_eq!(read(&image, 4, 7), Ok(vec![4, 5, 6]));
    assert_eq!(read(&image, 3, 7), Err(Error::Store(StorageError::Compacted)));
    let snapshot = image.snapshot(0, 1).unwrap();
    assert_eq!(&snapshot.data[..], b"at 5");
    assert_eq!(
        (snapshot.get_metadata().index, snapshot.get_metadata().term),
        (5, 3)
    );
}

#[test]
fn the_term_before_the_log_stays_readable_when_it_is_compacted() {
    for keep in 0..7 {
        let mut image = image();
        image.compact(5, voters(), Bytes::new(), keep);
        let start = 5u64.saturating_sub(keep);
        assert_eq!(image.start(), start);
        for (index, term) in (0..=6).zip([0, 1, 1, 2, 2, 3, 3]) {
            assert_eq!(image.term(index).ok(), (index >= start).then_some(term));
        }
        assert_eq!(image.term(7), Err(Error::Store(StorageError::Unavailable)));
    }
}

#[test]
fn what_was_dropped_stays_dropped_when_more_is_kept_later() {
    let mut image = image();
    image.compact(4, voters(), Bytes::new(), 1);
    image.compact(6, voters(), Bytes::new(), 9);
    assert_eq!((image.start(), image.snapshot_index(), image.last()), (3, 6, 6));
    assert!(image.append(entries(7, &[4])));
    assert_eq!(read(&image, 4, 8), Ok(vec![4, 5, 6, 7]));
}

#[test]
fn kept_entries_are_replaced_when_others_come_in_their_place() {
    let mut image = image();
    image.compact(3, voters(), Bytes::new(), 1);
    assert!(image.append(entries(5, &[4])));
    assert_eq!((image.last(), image.term(5).unwrap()), (5, 4));
    assert!(image.append(entries(2, &[1, 2, 2])));
    assert_eq!((image.start(), image.last()), (2, 4));
    assert!(!image.append(entries(6, &[4])));
}

#[test]
fn nothing_of_the_log_stays_when_a_snapshot_is_taken_over() {
    let mut image = image();
    image.compact(3, voters(), Bytes::new(), 3);
    let mut snapshot = Snapshot::default();
    snapshot.mut_metadata().index = 5;
    snapshot.mut_metadata().term = 9;
    image.restore(snapshot);
    assert_eq!((image.start(), image.last(), image.term(5).unwrap()), (5, 5, 9));
    assert!(image.term(4).is_err());
}

#[test]
fn a_snapshot_is_not_handed_out_when_it_does_not_name_its_receiver_or_is_none() {
    let unavailable = Err(Error::Store(StorageError::SnapshotTemporarilyUnavailable));
    let mut image = image();
    assert_eq!(image.snapshot(0, 1), unavailable);
    image.compact(3, voters(), Bytes::new(), 0);
    assert!(image.snapshot(0, 3).is_ok());
    assert_eq!(image.snapshot(0, 4), unavailable);
    assert_eq!(image.snapshot(4, 1), unavailable);
}

#[test]
fn reading_stops_at_the_limit_but_gives_one_entry_at_least() {
    let image = image();
    let read = |limit| {
        image
            .entries(1, 7, limit, GetEntriesContext::empty(false))
            .unwrap()
            .len()
    };
    assert_eq!(
        [read(0), read(16), read(32), read(47), read(1 << 20)],
        [1, 1, 2, 2, 6]
    );
}
