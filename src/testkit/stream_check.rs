//! Checks of one stream that fail with a difference that can be read.

mod keys;
mod reading;

use std::collections::HashMap;
use std::fmt::{self, Debug};
use std::future::Future;
use std::ops::ControlFlow;
use std::panic::Location;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tidelog_client::Client;

use self::keys::copied;
use self::reading::{Look, Place, Source, Watch};
use super::difference::{
    Copies, Difference, Ended, Found, KEY_BYTES_SHOWN, KeyCount, Report, compare, count, disorder, disorder_by,
    excerpt, list_keys, list_records, time,
};
use super::records::StoredRecord;

pub use self::keys::IntoKeys;

/// How long expectations wait by default.
const WITHIN_DEFAULT: Duration = Duration::from_secs(5);

/// Looks at one stream of a broker, for a test.
///
/// Each check comes in two forms: `expect_*` panics, `check_*` gives a [`Difference`]. The text is the same: what was
/// expected beside what was found, the place in the test, and what it most likely is where the records show that. What is
/// checked is what is durable; nothing else is ever read.
///
/// [`expect`](Self::expect) reads on from where the one before ended, and [`expect_no_more`](Self::expect_no_more) looks
/// behind that; the other checks look at the whole stream. This place belongs to the `StreamCheck`, so make one check at a
/// time with it, and another `StreamCheck` to begin anew.
///
/// What is not there yet is waited for, as long as [`within`](Self::within) says; a stream, too, by the checks that wait.
/// Waiting takes no processor time and ends as soon as the answer is certain. It goes by tokio's clock, as the client does: do
/// not pause it (`start_paused`) unless the broker is [in process](super::Start::in_process), or whatever waits for the
/// broker is over at once.
///
/// ```
/// # use tidelog_client::*;
/// # use tidelog_protocol::*;
/// # #[tokio::main]
/// # async fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # let broker = tidelog::Broker::start(tidelog::BrokerConfig::in_memory())?;
/// # let client = Client::connect(ClientConfig::find(&broker.address().parse()?, None)?).await?;
/// use tidelog::testkit::StreamCheck;
///
/// # let orders = client.create_stream(&StreamName::new("orders")?, StreamSettings::default(), true).await?;
/// let producer = client.producer(ProducerName::new("shop")?).open().await?;
/// let publisher = producer.stream(&orders).await?;
/// for value in ["created", "paid", "shipped"] {
///     publisher.send(Record::new(value).with_key("order 7")).await?;
/// }
///
/// let orders = StreamCheck::new(client.clone(), "orders");
/// orders.expect(["created", "paid"]).await;
/// orders.expect(["shipped"]).await;
/// orders.expect_no_more().await;
/// orders.expect_count(3).await;
/// orders.expect_ordered("order 7").await;
/// # Ok(())
/// # }
/// ```
pub struct StreamCheck {
    source: Source,
    within: Duration,
    /// Behind what was expected and found so far; `None` at the start.
    place: Mutex<Option<Place>>,
}

impl StreamCheck {
    /// Checks of a stream, which need not be there yet. They use the client's connection.
    pub fn new(client: Client, stream: impl Into<String>) -> Self {
        let source = Source { client, stream: stream.into() };
        Self { source, within: WITHIN_DEFAULT, place: Mutex::new(None) }
    }

    /// How long expectations wait for what is not there yet; 5 s by default.
    ///
    /// Once it has passed there is one last look at the stream, which decides: with [`Duration::ZERO`] a check goes by what
    /// is there. That look takes up to 5 s more where the broker does not answer.
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// All records of the stream, from the first one kept to the present end. Does not wait for any.
    ///
    /// # Panics
    ///
    /// If there is no such stream, or it can't be read to its end: it is damaged, or the broker can't be reached.
    #[track_caller]
    pub fn records(&self) -> impl Future<Output = Vec<StoredRecord>> + Send {
        let checked = self.check_records();
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::records`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_records(&self) -> impl Future<Output = Result<Vec<StoredRecord>, Difference>> + Send {
        let location = Location::caller();
        async move {
            let look = self.source.present(None, usize::MAX, |_| true).await;
            match &look.stop {
                None => Ok(look.records),
                Some(_) => Err(self.unread(&look).at(location)),
            }
        }
    }

    /// The next records have exactly these values, in this order.
    ///
    /// Waits until as many are there, and fails without waiting for the rest at the first one that differs. Records behind
    /// them do not matter: the next `expect` begins there. After a failure it begins where this one did. Values alone are
    /// compared; see [`Self::records`] for the rest. No values are met by any stream, and by none.
    ///
    /// # Panics
    ///
    /// If they are others, if they did not come in time, or if the stream can't be read on.
    #[track_caller]
    pub fn expect<V: AsRef<[u8]>>(&self, values: impl IntoIterator<Item = V>) -> impl Future<Output = ()> + Send {
        let checked = self.check_expect(values);
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::expect`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_expect<V: AsRef<[u8]>>(
        &self,
        values: impl IntoIterator<Item = V>,
    ) -> impl Future<Output = Result<(), Difference>> + Send {
        let location = Location::caller();
        let expected = copied(values);
        async move { self.compare_next(&expected).await.map_err(|report| report.at(location)) }
    }

    /// The whole stream has exactly so many records.
    ///
    /// Waits until as many are there and fails if there are more by then. Those that come later can't be known; see
    /// [`Self::expect_no_more_for`].
    ///
    /// # Panics
    ///
    /// If there are more, if fewer came in time, or if the stream can't be read.
    #[track_caller]
    pub fn expect_count(&self, records: usize) -> impl Future<Output = ()> + Send {
        let checked = self.check_count(records);
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::expect_count`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_count(&self, records: usize) -> impl Future<Output = Result<(), Difference>> + Send {
        let location = Location::caller();
        async move { self.compare_count(records).await.map_err(|report| report.at(location)) }
    }

    /// There is nothing behind what was expected so far, and nothing at all if that was nothing.
    ///
    /// This looks at what is durable at present and does not wait. So it can't know of a record that a producer has not
    /// sent yet, or that is under way: wait for the producers before (`flush`, `close`), or use
    /// [`Self::expect_no_more_for`]. The stream must be there, so that a wrong name does not pass.
    ///
    /// # Panics
    ///
    /// If there is more, or if the stream can't be read.
    #[track_caller]
    pub fn expect_no_more(&self) -> impl Future<Output = ()> + Send {
        let checked = self.check_no_more();
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::expect_no_more`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_no_more(&self) -> impl Future<Output = Result<(), Difference>> + Send {
        let location = Location::caller();
        async move { self.find_no_more().await.map_err(|report| report.at(location)) }
    }

    /// There is nothing behind what was expected so far, and nothing comes for so long. Takes this time if that is so, and
    /// fails as soon as something comes. The stream must be there by the end.
    ///
    /// # Panics
    ///
    /// If there is more, or if the stream can't be read at the end of the time.
    #[track_caller]
    pub fn expect_no_more_for(&self, quiet: Duration) -> impl Future<Output = ()> + Send {
        let checked = self.check_no_more_for(quiet);
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::expect_no_more_for`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_no_more_for(&self, quiet: Duration) -> impl Future<Output = Result<(), Difference>> + Send {
        let location = Location::caller();
        async move {
            // Whatever ends this early, the look behind it says what it was.
            let _ = self.source.follow(self.place(), quiet, |_| ControlFlow::Break(())).await;
            self.find_no_more().await.map_err(|report| report.at(location))
        }
    }

    /// Each of these keys has exactly one record in the whole stream. Takes a key, or an array or `Vec` of keys.
    ///
    /// Waits until each key has a record, and fails at once if one has two. A second record that comes later can't be
    /// known.
    ///
    /// # Panics
    ///
    /// If a key has more than one record, or none in time, or if the stream can't be read.
    #[track_caller]
    pub fn expect_exactly_once(&self, keys: impl IntoKeys) -> impl Future<Output = ()> + Send {
        let checked = self.check_exactly_once(keys);
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::expect_exactly_once`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_exactly_once(&self, keys: impl IntoKeys) -> impl Future<Output = Result<(), Difference>> + Send {
        let location = Location::caller();
        let mut keys = keys.into_keys();
        keys.sort();
        keys.dedup();
        async move { self.count_keys(&keys).await.map_err(|report| report.at(location)) }
    }

    /// The records of a key, of which there must be one, stand in an order that nothing about them speaks against.
    ///
    /// That is what can be told without knowing what the values mean:
    ///
    /// - the sequences of each producer ascend;
    /// - the timestamps, of those records that have one, do not fall;
    /// - no value comes again after another one came in between: `a a b` passes, `a b a` does not.
    ///
    /// So two records that changed places before they were published, without timestamps, are not noticed; and a key whose
    /// values come back by their nature (`on`, `off`, `on`) does not pass. Use [`Self::expect_ordered_by`] with a number of
    /// the application's own for both. Waits for the first record of the key and looks at those that are there then, so
    /// expect their number before.
    ///
    /// # Panics
    ///
    /// If they are out of order, if there is none in time, or if the stream can't be read.
    #[track_caller]
    pub fn expect_ordered(&self, key: impl AsRef<[u8]>) -> impl Future<Output = ()> + Send {
        let checked = self.check_ordered(key);
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::expect_ordered`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_ordered(&self, key: impl AsRef<[u8]>) -> impl Future<Output = Result<(), Difference>> + Send {
        let location = Location::caller();
        let key = Bytes::copy_from_slice(key.as_ref());
        async move { self.order_of(&key, disorder).await.map_err(|report| report.at(location)) }
    }

    /// What `order` makes of the records of a key, of which there must be one, does not fall from record to record.
    ///
    /// Waits for the first record of the key and looks at those that are there then, so expect their number before.
    ///
    /// # Panics
    ///
    /// If it falls, if there is no record in time, or if the stream can't be read.
    #[track_caller]
    pub fn expect_ordered_by<O: Ord + Debug>(
        &self,
        key: impl AsRef<[u8]>,
        order: impl Fn(&StoredRecord) -> O + Send,
    ) -> impl Future<Output = ()> + Send {
        let checked = self.check_ordered_by(key, order);
        async move { checked.await.unwrap_or_else(fail) }
    }

    /// As [`Self::expect_ordered_by`].
    ///
    /// # Errors
    ///
    /// A [`Difference`] instead of a panic.
    #[track_caller]
    pub fn check_ordered_by<O: Ord + Debug>(
        &self,
        key: impl AsRef<[u8]>,
        order: impl Fn(&StoredRecord) -> O + Send,
    ) -> impl Future<Output = Result<(), Difference>> + Send {
        let location = Location::caller();
        let key = Bytes::copy_from_slice(key.as_ref());
        async move {
            let disorder = move |records: &[StoredRecord]| disorder_by(records, order);
            self.order_of(&key, disorder).await.map_err(|report| report.at(location))
        }
    }

    async fn compare_next(&self, expected: &[Bytes]) -> Result<(), Report> {
        let Some(last) = expected.len().checked_sub(1) else { return Ok(()) };
        let begin = self.place();
        let mut watch = Watch::new(&self.source.client);
        let mut seen: Vec<StoredRecord> = Vec::new();
        let mut differs = false;
        let followed = self
            .source
            .follow(begin, self.within, |record| {
                let place = seen.len();
                differs = expected.get(place) != Some(&record.value);
                seen.push(record);
                if differs || place == last { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
            })
            .await;
        let ended = match followed {
            Ok(Some(from)) if !differs => {
                self.move_behind(from, seen.last());
                return Ok(());
            }
            Ok(Some(_)) => Ended::Differs,
            Ok(None) => Ended::TimeLimit(self.within),
            Err(stop) => Ended::Stopped(stop.to_string()),
        };
        let mut look = self.source.last_look(begin, expected.len()).await;
        if look.records.len() - look.passed < seen.len() {
            // The broker has gone since.
            look = Look { records: seen, stop: look.stop, ..Look::default() };
        }
        let found = Found { records: &look.records, passed: look.passed, more: look.more };
        match compare(&self.source.stream, expected, found, &ended) {
            None => {
                // It came while the time limit passed.
                if let Some(from) = look.from {
                    self.move_behind(from, look.records.get(look.passed + last));
                }
                Ok(())
            }
            Some(report) => Err(Report { remark: remark(&ended, &look, &mut watch), ..report }),
        }
    }

    async fn compare_count(&self, wanted: usize) -> Result<(), Report> {
        let mut seen = 0;
        let settled = self
            .settle(
                wanted,
                |_| true,
                |_| {
                    seen += 1;
                    seen >= wanted
                },
            )
            .await;
        let Look { records, more, stop, .. } = &settled.look;
        let stream = &self.source.stream;
        if stop.is_some() && !settled.waited {
            return Err(self.unread(&settled.look));
        }
        let found = records.len() as u64 + more;
        let wanted_records = count(wanted, "record", "records");
        if found < wanted as u64 {
            let limit = time(self.within);
            let headline = format!("stream '{stream}' has {found} of {wanted_records} after {limit}");
            let lines = list_records(records, *more, |_| None);
            return Err(Report { lines, remark: settled.remark, ..Report::new(headline) });
        }
        if stop.is_some() {
            return Err(self.unread(&settled.look));
        }
        if found == wanted as u64 {
            return Ok(());
        }
        let copies = Copies::of(records);
        let originals: Vec<(usize, usize)> =
            (0..records.len()).filter_map(|place| Some((place, copies.original(place)?))).collect();
        let headline = format!("stream '{stream}' has {found} records instead of {wanted}");
        let lines = list_records(records, *more, |place| {
            let note = copies.original(place).and_then(|other| copies.note(other));
            match (place >= wanted, note) {
                (true, note) => Some(('+', note.unwrap_or_default())),
                (false, note) => note.map(|note| (' ', note)),
            }
        });
        // Only if that is what makes the difference.
        let conclusion =
            (originals.len() as u64 == found - wanted as u64).then(|| copies.explain(&originals)).flatten();
        Err(Report { lines, conclusion, ..Report::new(headline) })
    }

    async fn find_no_more(&self) -> Result<(), Report> {
        let place = self.place();
        let look = self.source.present(place, 0, |_| true).await;
        if look.records.is_empty() {
            return match look.stop {
                None => Ok(()),
                Some(_) => Err(self.unread(&look)),
            };
        }
        let full = self.source.last_look(place, 0).await;
        let look = if full.records.len() > full.passed { full } else { look };
        let copies = Copies::of(&look.records);
        let surplus: Vec<usize> = (look.passed..look.records.len()).collect();
        let pairs: Option<Vec<(usize, usize)>> =
            surplus.iter().map(|place| copies.original(*place).map(|other| (*place, other))).collect();
        let number = surplus.len() as u64 + look.more;
        let more = if number == 1 { "1 record".to_owned() } else { format!("{number} records") };
        let headline = format!("stream '{}' has {more} more than expected", self.source.stream);
        let passed = look.passed;
        let lines = list_records(look.records.get(passed..).unwrap_or_default(), look.more, |place| {
            let note = copies.original(passed + place).and_then(|other| copies.note(other));
            Some(('+', note.unwrap_or_default()))
        });
        let conclusion = pairs.and_then(|pairs| copies.explain(&pairs));
        Err(Report { lines, conclusion, ..Report::new(headline) })
    }

    async fn count_keys(&self, keys: &[Bytes]) -> Result<(), Report> {
        let mut places: HashMap<&[u8], Vec<usize>> = keys.iter().map(|key| (&**key, Vec::new())).collect();
        let is_meant = |record: &StoredRecord| record.key.as_ref().is_some_and(|key| keys.binary_search(key).is_ok());
        let mut seen: HashMap<Bytes, usize> = HashMap::new();
        let settled = self
            .settle(usize::MAX, is_meant, |record| {
                let Some(key) = &record.key else { return false };
                let records = seen.entry(key.clone()).or_default();
                *records += 1;
                *records > 1 || seen.len() == keys.len()
            })
            .await;
        let records = &settled.look.records;
        for (place, record) in records.iter().enumerate() {
            if let Some(places) = record.key.as_deref().and_then(|key| places.get_mut(key)) {
                places.push(place);
            }
        }
        if settled.look.stop.is_some() && !settled.waited {
            return Err(self.unread(&settled.look));
        }
        let mut wrong: Vec<KeyCount<'_>> = keys
            .iter()
            .map(|key| KeyCount { key, places: places.remove(&**key).unwrap_or_default() })
            .filter(|key| key.places.len() != 1)
            .collect();
        if wrong.is_empty() {
            return self.all_read(&settled.look);
        }
        // What is there too often is the worse of the two.
        wrong.sort_by_key(|key| key.places.is_empty());
        let missing = wrong.iter().filter(|key| key.places.is_empty()).count();
        let after = if missing > 0 && settled.waited { format!(" after {}", time(self.within)) } else { String::new() };
        let headline = format!(
            "stream '{}': {} of {} without exactly one record{after}",
            self.source.stream,
            wrong.len(),
            count(keys.len(), "key", "keys"),
        );
        let copies = Copies::of(records);
        let pairs: Option<Vec<(usize, usize)>> = wrong
            .iter()
            .flat_map(|key| key.places.iter().skip(1).map(|place| (*place, &key.places)))
            .map(|(place, places)| Some((place, copies.original_of(place, places)?)))
            .collect();
        Err(Report {
            lines: list_keys(&wrong, records, &copies),
            conclusion: pairs.and_then(|pairs| copies.explain(&pairs)),
            remark: settled.remark,
            ..Report::new(headline)
        })
    }

    async fn order_of(
        &self,
        key: &Bytes,
        disorder: impl FnOnce(&[StoredRecord]) -> HashMap<usize, String> + Send,
    ) -> Result<(), Report> {
        let is_meant = |record: &StoredRecord| record.key.as_ref() == Some(key);
        let settled = self.settle(usize::MAX, is_meant, |_| true).await;
        let shown = excerpt(key, KEY_BYTES_SHOWN);
        let stream = &self.source.stream;
        if settled.look.stop.is_some() && !settled.waited {
            return Err(self.unread(&settled.look));
        }
        let records = &settled.look.records;
        if records.is_empty() {
            let headline = format!("stream '{stream}' has no record of key {shown} after {}", time(self.within));
            return Err(Report { remark: settled.remark, ..Report::new(headline) });
        }
        let wrong = disorder(records);
        if wrong.is_empty() {
            return self.all_read(&settled.look);
        }
        let headline = format!(
            "stream '{stream}': {} of {} of key {shown} out of order",
            wrong.len(),
            count(records.len(), "record", "records"),
        );
        let lines = list_records(records, 0, |place| wrong.get(&place).map(|fault| ('!', fault.clone())));
        Err(Report { lines, ..Report::new(headline) })
    }

    /// Waits until `enough` says so of the records that `keep` wants, from the start of the stream, and gives those that
    /// are there then.
    async fn settle(
        &self,
        wanted: usize,
        keep: impl Fn(&StoredRecord) -> bool,
        mut enough: impl FnMut(&StoredRecord) -> bool,
    ) -> Settled {
        let mut watch = Watch::new(&self.source.client);
        let mut ended = None;
        if wanted > 0 {
            let followed = self
                .source
                .follow(None, self.within, |record| {
                    if keep(&record) && enough(&record) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
                })
                .await;
            ended = match followed {
                Ok(Some(_)) => None,
                Ok(None) => Some(Ended::TimeLimit(self.within)),
                Err(stop) => Some(Ended::Stopped(stop.to_string())),
            };
        }
        let waited = matches!(ended, Some(Ended::TimeLimit(_)));
        let look = match waited {
            true => self.source.present_soon(wanted, keep).await,
            false => self.source.present(None, wanted, keep).await,
        };
        let remark = ended.and_then(|ended| remark(&ended, &look, &mut watch));
        Settled { look, waited, remark }
    }

    /// That nothing is wrong can be said only of a stream that was read to its end.
    fn all_read(&self, look: &Look) -> Result<(), Report> {
        if look.stop.is_some() { Err(self.unread(look)) } else { Ok(()) }
    }

    fn unread(&self, look: &Look) -> Report {
        let reason = look.stop.as_ref().map_or_else(String::new, ToString::to_string);
        Report::new(format!("stream '{}' can't be read: {reason}", self.source.stream))
    }

    fn place(&self) -> Option<Place> {
        // A place is whole or it is not there.
        *self.place.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn move_behind(&self, from: Place, last: Option<&StoredRecord>) {
        if let Some(last) = last {
            *self.place.lock().unwrap_or_else(PoisonError::into_inner) = Some(from.behind(last));
        }
    }
}

impl fmt::Debug for StreamCheck {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter
            .debug_struct("StreamCheck")
            .field("stream", &self.source.stream)
            .field("within", &self.within)
            .field("place", &self.place())
            .finish_non_exhaustive()
    }
}

/// What a check of the whole stream goes by.
struct Settled {
    look: Look,
    /// The time limit has passed.
    waited: bool,
    remark: Option<String>,
}

/// What else is to be known where something is missing.
fn remark(ended: &Ended, look: &Look, watch: &mut Watch) -> Option<String> {
    match (ended, &look.stop) {
        (Ended::Stopped(_), _) | (_, None) => None,
        (_, Some(stop)) => Some(watch.trouble().unwrap_or_else(|| stop.sentence())),
    }
}

/// The panic of an expectation. Where it was asked stands in the text, since a future knows only its own place.
fn fail<T>(difference: Difference) -> T {
    panic!("{difference}")
}
