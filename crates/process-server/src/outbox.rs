//! What the vault has not taken yet and must not be lost over a restart: events and results.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::state_dir::{StateError, read_checked, remove_file, write_checked};

/// A queue of which each item is a file.
pub(crate) struct Outbox<T> {
    dir: PathBuf,
    items_max: usize,
    queue: Mutex<Queue<T>>,
    pub filled: Notify,
}

struct Queue<T> {
    items: VecDeque<(u64, T)>,
    next: u64,
}

impl<T: Serialize + DeserializeOwned + Clone> Outbox<T> {
    /// Reads back what a directory holds. Damaged files are set apart by name and logged.
    pub fn open(dir: PathBuf, items_max: usize) -> Result<Self, StateError> {
        let mut items = Vec::new();
        let mut next = 0;
        for entry in std::fs::read_dir(&dir).map_err(StateError::io("read", &dir))? {
            let path = entry.map_err(StateError::io("read", &dir))?.path();
            let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
            let Some(order) = name.strip_suffix(".json").and_then(|stem| stem.parse::<u64>().ok()) else {
                continue;
            };
            next = next.max(order + 1);
            match read_checked(&path) {
                Ok(item) => items.push((order, item)),
                Err(error) => {
                    tracing::error!("set apart: {error}");
                    let apart = path.with_extension("damaged");
                    std::fs::rename(&path, &apart).map_err(StateError::io("rename", &path))?;
                }
            }
        }
        items.sort_by_key(|(order, _)| *order);
        let queue = Mutex::new(Queue { items: items.into(), next });
        Ok(Self { dir, items_max, queue, filled: Notify::new() })
    }

    fn lock(&self) -> MutexGuard<'_, Queue<T>> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn path(&self, order: u64) -> PathBuf {
        self.dir.join(format!("{order:020}.json"))
    }

    /// Adds an item durably; false when there is no room.
    pub fn push(&self, item: T) -> Result<bool, StateError> {
        let Some(order) = self.next_order() else { return Ok(false) };
        write_checked(&self.path(order), &item)?;
        self.insert(order, item);
        Ok(true)
    }

    /// Adds an item if there is room: durably, or, when that cannot be, in memory alone.
    ///
    /// # Errors
    /// When it is in memory alone.
    pub fn keep(&self, item: T) -> Result<(), StateError> {
        let Some(order) = self.next_order() else { return Ok(()) };
        let written = write_checked(&self.path(order), &item);
        self.insert(order, item);
        written
    }

    /// The place of a new item; none when there is no room.
    fn next_order(&self) -> Option<u64> {
        let mut queue = self.lock();
        if queue.items.len() >= self.items_max {
            return None;
        }
        queue.next += 1;
        Some(queue.next - 1)
    }

    fn insert(&self, order: u64, item: T) {
        let mut queue = self.lock();
        let place = queue.items.partition_point(|(other, _)| *other < order);
        queue.items.insert(place, (order, item));
        drop(queue);
        self.filled.notify_one();
    }

    /// The oldest item.
    pub fn front(&self) -> Option<(u64, T)> {
        self.lock().items.front().cloned()
    }

    /// Removes an item that was taken. It does not come again, also when its file cannot be removed;
    /// but for after a restart.
    pub fn remove(&self, order: u64) -> Result<(), StateError> {
        self.lock().items.retain(|(other, _)| *other != order);
        remove_file(&self.path(order))
    }

    /// The oldest item for which `expendable` holds, if there is no room.
    pub fn expendable(&self, expendable: impl Fn(&T) -> bool) -> Option<u64> {
        let queue = self.lock();
        if queue.items.len() < self.items_max {
            return None;
        }
        let found = queue.items.iter().find(|(_, item)| expendable(item));
        found.or(queue.items.front()).map(|(order, _)| *order)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_come_back_in_order_after_a_restart() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Outbox::<String>::open(dir.path().to_owned(), 3).unwrap();
        let outbox = open();
        for text in ["one", "two", "three"] {
            assert!(outbox.push(text.to_owned()).unwrap());
        }
        assert!(!outbox.push("four".to_owned()).unwrap());
        let (order, first) = outbox.front().unwrap();
        assert_eq!(first, "one");
        outbox.remove(order).unwrap();
        assert!(outbox.push("five".to_owned()).unwrap());
        drop(outbox);
        let outbox = open();
        let mut texts = Vec::new();
        while let Some((order, text)) = outbox.front() {
            texts.push(text);
            outbox.remove(order).unwrap();
        }
        assert_eq!(texts, ["two", "three", "five"]);
    }

    #[test]
    fn a_damaged_item_is_set_apart_and_not_in_the_way() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path().to_owned(), 3).unwrap();
        outbox.push("one".to_owned()).unwrap();
        outbox.push("two".to_owned()).unwrap();
        std::fs::write(dir.path().join(format!("{:020}.json", 0)), "rubbish").unwrap();
        let outbox = Outbox::<String>::open(dir.path().to_owned(), 3).unwrap();
        assert_eq!(outbox.front().unwrap().1, "two");
        assert!(dir.path().join(format!("{:020}.damaged", 0)).exists());
    }

    #[test]
    fn the_least_important_goes_first_when_there_is_no_room() {
        let dir = tempfile::tempdir().unwrap();
        let outbox = Outbox::open(dir.path().to_owned(), 2).unwrap();
        outbox.push(9).unwrap();
        assert_eq!(outbox.expendable(|item| *item < 5), None);
        outbox.push(1).unwrap();
        assert_eq!(outbox.expendable(|item| *item < 5), Some(1));
        assert_eq!(outbox.expendable(|item| *item < 0), Some(0));
    }
}
