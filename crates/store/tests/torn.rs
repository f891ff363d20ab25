//! Power loss at every point of a recorded life: any prefix of what was done to the disk, with any legal loss of what
//! was not synced yet (nothing of it, all of it, any part of it, sectors of it).

mod common;

use std::collections::BTreeMap;
use std::sync::Arc;

use base::Ids;
use common::{Disk, Step, apply};
use store::{Embedded, Expect, Options, Revision, Store, Write};

type State = BTreeMap<String, (Vec<u8>, Revision)>;

const SECTOR: usize = 512;

fn options() -> Options {
    // So little history that trimming is part of what is torn.
    Options { history_events: 40, ..Options::default() }
}

async fn state(store: &Embedded) -> (State, Revision) {
    let (entries, revision) = store.range("").await.unwrap();
    (entries.into_iter().map(|e| (e.key, (e.value.to_vec(), e.revision))).collect(), revision)
}

/// A life of groups, overwrites and deletes. Gives the trace and what the state was at each revision.
async fn live(seed: u64, groups: u64) -> (Vec<Step>, BTreeMap<Revision, State>) {
    let (disk, ids) = (Disk::recording(), Ids::seeded(seed));
    let store = Arc::new(Embedded::open_with(disk.opener(), options()).unwrap());
    disk.lock().trace.push(Step::Ack(0));
    let mut states = BTreeMap::from([(0, State::new())]);
    let mut model = State::new();
    for _ in 0..groups {
        // Keys of one group differ, so that its order does not matter to the model but for the revisions.
        let mut writes = Vec::new();
        for n in 0..=ids.next_u64() % 5 {
            let key = format!("k/{}", n * 7 + ids.next_u64() % 7);
            let gone = model.contains_key(&key) && ids.next_u64().is_multiple_of(4);
            let value = (!gone).then(|| vec![(ids.next_u64() % 256) as u8; (ids.next_u64() % 6000) as usize]);
            writes.push(Write { key, expect: Expect::Any, value: value.map(Into::into) });
        }
        let tasks = writes.into_iter().map(|write| {
            let (store, disk) = (store.clone(), disk.clone());
            tokio::spawn(async move {
                // Two keys a transaction: they come and go together.
                let twin = Write { key: format!("twin/{}", write.key), ..write.clone() };
                let revision = store.txn(vec![write.clone(), twin]).await.unwrap();
                disk.lock().trace.push(Step::Ack(revision));
                (revision, write)
            })
        });
        let mut done = Vec::new();
        for task in tasks.collect::<Vec<_>>() {
            done.push(task.await.unwrap());
        }
        done.sort_by_key(|(revision, _)| *revision);
        for (revision, Write { key, value, .. }) in done {
            for key in [format!("twin/{key}"), key] {
                match &value {
                    Some(value) => drop(model.insert(key, (value.to_vec(), revision))),
                    None => drop(model.remove(&key)),
                }
            }
            states.insert(revision, model.clone());
        }
    }
    drop(store);
    let trace = std::mem::take(&mut disk.lock().trace);
    (trace, states)
}

/// What a disk may hold: `synced` and then, of the steps after it, what `keep` lets through.
fn image(synced: &[u8], pending: &[&Step], mut keep: impl FnMut(usize) -> Loss) -> Vec<u8> {
    let mut bytes = synced.to_vec();
    for (i, step) in pending.iter().enumerate() {
        match (step, keep(i)) {
            (_, Loss::All) => {}
            (Step::Length(length), _) => bytes.resize(*length as usize, 0),
            (Step::Write(offset, data), Loss::None) => apply(&mut bytes, *offset, data),
            (Step::Write(offset, data), Loss::Sectors(mask)) => {
                for (n, sector) in data.chunks(SECTOR).enumerate().filter(|(n, _)| mask >> (n % 64) & 1 == 1) {
                    apply(&mut bytes, offset + (n * SECTOR) as u64, sector);
                }
            }
            _ => {}
        }
    }
    bytes
}

enum Loss {
    None,
    All,
    Sectors(u64),
}

async fn check(bytes: Vec<u8>, acknowledged: Revision, states: &BTreeMap<Revision, State>, what: &str) {
    let disk = Disk::holding(bytes);
    let store = match Embedded::open_with(disk.opener(), options()) {
        Ok(store) => store,
        Err(e) => panic!("{what}: {e}"),
    };
    let (found, revision) = state(&store).await;
    assert!(revision >= acknowledged, "{what}: acknowledged {acknowledged}, found {revision}");
    let expect = states.get(&revision).unwrap_or_else(|| panic!("{what}: revision {revision} never was"));
    assert!(found == *expect, "{what}: not the state of revision {revision}");
    // And it goes on from there.
    let next = store.txn(vec![Write { key: "after".into(), expect: Expect::Absent, value: Some("x".into()) }]).await.unwrap();
    assert_eq!(next, revision + 1, "{what}");
}

async fn every_prefix(seed: u64, groups: u64) -> usize {
    let (trace, states) = live(seed, groups).await;
    let ids = Ids::seeded(seed);
    let (mut synced, mut pending): (Vec<u8>, Vec<&Step>) = (Vec::new(), Vec::new());
    // The file is made under another name, so that before it was opened once there is none.
    let (mut acknowledged, mut born, mut checked) = (0, false, 0);
    for (at, step) in trace.iter().enumerate() {
        match step {
            Step::Sync => {
                synced = image(&synced, &pending, |_| Loss::None);
                pending.clear();
            }
            Step::Ack(revision) => {
                acknowledged = acknowledged.max(*revision);
                born = true;
            }
            other => pending.push(other),
        }
        if !born {
            continue;
        }
        let what = |how: &str| format!("seed {seed}, step {at} of {}, {how}", trace.len());
        check(image(&synced, &pending, |_| Loss::All), acknowledged, &states, &what("nothing unsynced kept")).await;
        check(image(&synced, &pending, |_| Loss::None), acknowledged, &states, &what("all unsynced kept")).await;
        let last = pending.len().saturating_sub(1);
        let torn = image(&synced, &pending, |i| if i == last { Loss::Sectors(ids.next_u64()) } else { Loss::None });
        check(torn, acknowledged, &states, &what("the last write torn")).await;
        for _ in 0..2 {
            let some = image(&synced, &pending, |_| match ids.next_u64() % 3 {
                0 => Loss::None,
                1 => Loss::All,
                _ => Loss::Sectors(ids.next_u64()),
            });
            check(some, acknowledged, &states, &what("some unsynced kept")).await;
        }
        checked += 5;
    }
    assert!(acknowledged > 0 && checked > 100);
    checked
}

#[tokio::test]
async fn no_power_loss_loses_what_was_acknowledged_or_shows_a_half() {
    for seed in 1..=6 {
        every_prefix(seed, 12).await;
    }
}

/// Damage that no disk may do by itself (the tail cut off or zeroed after a sync) is refused or survived, never believed.
#[tokio::test]
async fn a_file_cut_short_is_never_believed() {
    let (trace, states) = live(9, 30).await;
    let steps: Vec<&Step> = trace.iter().filter(|s| !matches!(s, Step::Ack(_) | Step::Sync)).collect();
    let whole = image(&[], &steps, |_| Loss::None);
    let mut refused = 0;
    for part in 1..40 {
        let at = whole.len() * part / 40;
        let mut zeroed = whole.clone();
        zeroed[at..].fill(0);
        for (bytes, how) in [(whole[..at].to_vec(), "cut"), (zeroed, "zeroed")] {
            let what = format!("{how} at {at} of {}", whole.len());
            let Ok(store) = Embedded::open_with(Disk::holding(bytes).opener(), options()) else {
                refused += 1;
                continue;
            };
            let (entries, revision) = store.range("").await.unwrap();
            let found: State = entries.into_iter().map(|e| (e.key, (e.value.to_vec(), e.revision))).collect();
            assert!(states.get(&revision) == Some(&found), "{what}: a state that never was");
        }
    }
    assert!(refused > 60, "{refused} of 78");
}
