//! Programs that read: followers that come and go, and auditors that read whole streams and hold them against all that was
//! promised before.

use std::rc::Rc;
use std::time::Duration;

use tidelog_client::{Client, Reader, ReaderEvent};
use tidelog_protocol::{Offset, StartAt};
use tidelog_storage::medium::SimulatedRng;
use tokio::time::sleep;

use super::Checked;
use super::world::{World, producer_name, stream_name};
use crate::check;

/// Follows the stream from here and there, again and again, until all is done and it has seen the end.
pub(crate) async fn follow(world: Rc<World>, stream: usize) -> Checked {
    let mut rng = world.luck();
    while !world.is_done.get() {
        let Some(client) = world.client(&mut rng).await? else { continue };
        let from = match rng.below(4) {
            0 => StartAt::Start,
            1 => StartAt::End,
            _ => StartAt::Last { count: rng.below(40) },
        };
        let Some(mut reader) = open(&world, &client, stream, from, true).await? else { continue };
        let batches = 1 + rng.below(200);
        let mut expected = reader.next_offset();
        for _ in 0..batches {
            let mut changed = std::pin::pin!(world.changed.notified());
            changed.as_mut().enable();
            if world.is_done.get() {
                break;
            }
            let event = tokio::select! {
                biased;
                event = reader.next_batch() => event,
                () = changed => continue,
            };
            let Some(event) = world.patiently(event)? else { break };
            expected = saw(&world, stream, expected, event)?;
            if rng.chance(10) {
                sleep(Duration::from_millis(rng.below(50))).await;
            }
        }
        if rng.chance(2) {
            sleep(Duration::from_millis(rng.below(300))).await;
        }
    }
    Ok(())
}

/// Reads whole streams, one after the other, until all is done.
pub(crate) async fn keep_auditing(world: Rc<World>, streams: usize) -> Checked {
    let mut rng = world.luck();
    while !world.is_calm() {
        sleep(Duration::from_millis(rng.below(2_500))).await;
        let stream = rng.below(streams as u64) as usize;
        audit(&world, stream, &mut rng).await?;
    }
    Ok(())
}

/// Reads the whole stream and holds it against what was promised before.
pub(crate) async fn audit(world: &World, stream: usize, rng: &mut SimulatedRng) -> Checked {
    let Some(client) = world.client(rng).await? else { return Ok(()) };
    let promised = world.ledger.borrow().promised(stream);
    let Some(mut reader) = open(world, &client, stream, StartAt::Start, false).await? else { return Ok(()) };
    let end = reader.end().map_or(0, Offset::get);
    let mut expected = reader.next_offset();
    check!(expected.get() == 0, "stream {stream} begins at {expected}");
    while expected.get() < end {
        let Some(event) = world.patiently(reader.next_batch().await)? else { return Ok(()) };
        expected = saw(world, stream, expected, event)?;
    }
    world.trace.line(format_args!("stream {stream} was read up to {end}"));
    world.ledger.borrow_mut().audit(&promised, end)?;
    client.close().await;
    Ok(())
}

/// Asks for the epochs of producers: what was told of them must still be so.
pub(crate) async fn ask_for_epochs(world: &World, names: &[&str], rng: &mut SimulatedRng) -> Checked {
    let Some(client) = world.client(rng).await? else { return Ok(()) };
    for name in names {
        let before = world.ledger.borrow().epoch_of(name);
        let Some(found) = world.patiently(client.find_producer(&producer_name(name)).await)? else { return Ok(()) };
        let epoch = found.map_or(0, |producer| producer.epoch.get());
        let mut ledger = world.ledger.borrow_mut();
        ledger.epoch_is(name, before, epoch)?;
        ledger.told_epoch(name, epoch)?;
    }
    client.close().await;
    Ok(())
}

/// Asks for the epochs again and again.
pub(crate) async fn keep_asking(world: Rc<World>, names: Vec<&'static str>) -> Checked {
    let mut rng = world.luck();
    while !world.is_calm() {
        sleep(Duration::from_millis(rng.below(3_000))).await;
        ask_for_epochs(&world, &names, &mut rng).await?;
    }
    Ok(())
}

async fn open(world: &World, client: &Client, stream: usize, from: StartAt, follow: bool) -> Checked<Option<Reader>> {
    let reader = client.reader(stream_name(stream)).from(from).follow(follow).open().await;
    let Some(reader) = world.patiently(reader)? else { return Ok(None) };
    world.ledger.borrow_mut().stream_is(stream_name(stream).as_str(), reader.description().id)?;
    Ok(Some(reader))
}

/// Takes in what a reader gives: records from `expected` on, and nothing else.
fn saw(world: &World, stream: usize, expected: Offset, event: Option<ReaderEvent>) -> Checked<Offset> {
    match event {
        Some(ReaderEvent::Batch(batch)) => {
            check!(batch.base_offset() == expected, "offset {} came where {expected} was due", batch.base_offset());
            world.ledger.borrow_mut().saw(stream, &batch).map(Offset::new)
        }
        other => Err(format!("a reader of stream {stream} was given {other:?} at {expected}")),
    }
}
