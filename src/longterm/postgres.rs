//! The long-term store in PostgreSQL, or in what speaks its protocol.
//!
//! One connection folds, another one reads; each is opened when it is needed and opened again
//! when it breaks. Every wait has a deadline, and what failed for want of a connection is tried
//! again a few times. The SQL keeps to what such databases share, and each transaction to one
//! shard, whose number is the first column of every key.

mod rows;
mod sql;
mod tls;

use std::{path::Path, sync::Arc, time::Duration};

use tokio::{sync::Mutex, task::JoinHandle};
use tokio_postgres::{
    Client, Row, Transaction,
    error::SqlState,
    types::{ToSql, Type},
};

use self::{
    rows::{Changes, Pasts, commit_of, item_of, past_of, position_of},
    tls::Tls,
};
use super::{
    Advance, Answer, Commit, Error, Fold, Item, Keys, LongTerm, Name, Past, Step, fold::signed,
};
use crate::{
    base::{
        ids::{QueueId, Shard, random_bytes},
        tasks,
    },
    queue::{
        position::{Position, Seq},
        reader::Take,
    },
};

/// How often what failed for want of a connection is tried, and how long the first wait is.
const ATTEMPTS: u32 = 4;
const RETRY_FIRST: Duration = Duration::from_millis(50);
/// History that one statement drops.
const TRIM_ROWS: i64 = 10_000;

/// The long-term store in PostgreSQL.
pub struct Postgres {
    config: tokio_postgres::Config,
    tls: Option<Tls>,
    timeout: Duration,
    folding: Mutex<Option<Link>>,
    reading: Mutex<Option<Arc<Link>>>,
}

/// A connection, with the task that drives it.
struct Link {
    client: Client,
    driver: JoinHandle<()>,
}

impl Drop for Link {
    fn drop(&mut self) {
        self.driver.abort();
    }
}

/// A statement's parameter, with its type: so that one round trip does.
type Param<'a> = (&'a (dyn ToSql + Sync), Type);

/// One transaction.
#[derive(Clone, Copy)]
enum Work<'a> {
    /// The next commits of a shard.
    Fold(&'a Fold),
    /// A queue up to a position, with what restores its items.
    Rewind(&'a Advance, Position),
}

/// What went wrong with one attempt.
enum Failed {
    /// The connection: another one may do.
    Link(String),
    /// The database wants the transaction again: another one was in its way.
    Again(String),
    /// It is no use to try again.
    For(Error),
}

impl Postgres {
    /// Takes a connection string and, for TLS, the file of the CA that the server's certificate
    /// must come from. Connects when something is asked of it.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn new(url: &str, ca: Option<&Path>, timeout: Duration) -> Result<Self, String> {
        let mut config: tokio_postgres::Config =
            url.parse().map_err(|error| format!("no connection string: {}", explained(&error)))?;
        config.connect_timeout(timeout).application_name("carillon");
        let tls = ca.map(Tls::trusting).transpose()?;
        if tls.is_some() {
            // Whoever names a CA wants no connection without it.
            config.ssl_mode(tokio_postgres::config::SslMode::Require);
        }
        let (folding, reading) = Default::default();
        Ok(Self { config, tls, timeout, folding, reading })
    }

    async fn connect(&self) -> Result<Link, Failed> {
        let opened = async {
            let (client, driver) = match &self.tls {
                Some(tls) => {
                    let (client, connection) = self.config.connect(tls.clone()).await?;
                    (client, tasks::spawn("postgres", drive(connection)))
                }
                None => {
                    let (client, connection) = self.config.connect(tokio_postgres::NoTls).await?;
                    (client, tasks::spawn("postgres", drive(connection)))
                }
            };
            let link = Link { client, driver };
            // The server gives up too, so that what nobody waits for holds no lock.
            let limit = format!("SET statement_timeout = {}", self.timeout.as_millis());
            link.client.batch_execute(&limit).await?;
            Ok::<Link, tokio_postgres::Error>(link)
        };
        let link = match tokio::time::timeout(self.timeout, opened).await {
            Err(_) => return Err(Failed::Link("no connection in time".into())),
            Ok(opened) => opened.map_err(|error| Failed::Link(explained(&error)))?,
        };
        self.within(prepare_tables(&link.client)).await?;
        Ok(link)
    }

    /// The answer of the database, unless it takes too long.
    async fn within<T>(
        &self,
        answer: impl Future<Output = Result<T, Failed>>,
    ) -> Result<T, Failed> {
        let late = |_| Failed::Link("no answer in time".into());
        tokio::time::timeout(self.timeout, answer).await.map_err(late)?
    }

    /// The rows of one statement.
    async fn rows(
        &self,
        step: &'static str,
        statement: &str,
        params: &[Param<'_>],
    ) -> Result<Vec<Row>, Error> {
        let mut attempt = 0;
        loop {
            let answer = async {
                // Others may be about to connect.
                let link = self.within(self.reader()).await?;
                let asked = async {
                    let asked = link.client.query_typed(statement, params).await;
                    asked.map_err(|error| failed(step, &error))
                };
                let answer = self.within(asked).await;
                if let Err(Failed::Link(_)) = &answer {
                    self.forget(&link).await;
                }
                answer
            };
            match answer.await {
                Ok(rows) => return Ok(rows),
                Err(failed) => retry(step, failed, &mut attempt).await?,
            }
        }
    }

    async fn reader(&self) -> Result<Arc<Link>, Failed> {
        let mut reading = self.reading.lock().await;
        match &*reading {
            Some(link) if !link.client.is_closed() => Ok(link.clone()),
            _ => Ok(reading.insert(Arc::new(self.connect().await?)).clone()),
        }
    }

    /// Does not use a connection again. Others may still wait for answers on it.
    async fn forget(&self, link: &Arc<Link>) {
        let mut reading = self.reading.lock().await;
        if reading.as_ref().is_some_and(|now| Arc::ptr_eq(now, link)) {
            *reading = None;
        }
    }

    /// Runs a transaction; it must be one that may be tried again.
    async fn transact(&self, step: &'static str, work: Work<'_>) -> Result<(), Error> {
        let mut folding = self.folding.lock().await;
        let mut attempt = 0;
        loop {
            // Taken out: what is dropped or fails half-way leaves no connection in a transaction.
            let link = folding.take().filter(|link| !link.client.is_closed());
            let answer = async {
                let mut link = match link {
                    Some(link) => link,
                    None => self.connect().await?,
                };
                let client = &mut link.client;
                match work {
                    Work::Fold(fold) => self.within(fold_in(client, fold)).await?,
                    Work::Rewind(queue, to) => {
                        self.within(rewind_in(client, std::slice::from_ref(queue), to)).await?;
                    }
                }
                Ok(link)
            };
            match answer.await {
                Ok(link) => {
                    *folding = Some(link);
                    return Ok(());
                }
                // Whether it was committed nobody knows; then the pointer tells.
                Err(failed) => retry(step, failed, &mut attempt).await?,
            }
        }
    }
}

/// Drives a connection until it ends; its users see that by their answers.
async fn drive(connection: impl Future<Output = Result<(), tokio_postgres::Error>>) {
    if let Err(error) = connection.await {
        tracing::debug!(error = explained(&error), "a connection to the long-term store ended");
    }
}

/// Waits before the next attempt, or gives up.
async fn retry(step: &'static str, failed: Failed, attempt: &mut u32) -> Result<(), Error> {
    let cause = match failed {
        Failed::For(error) => return Err(error),
        Failed::Link(cause) | Failed::Again(cause) => cause,
    };
    *attempt += 1;
    if *attempt >= ATTEMPTS {
        return Err(Error::Unreachable { step, cause });
    }
    let longest = RETRY_FIRST * 2_u32.pow(*attempt - 1);
    let share = u32::from(u16::from_le_bytes(random_bytes())) + 1;
    tokio::time::sleep(longest * share / (1 << 16)).await;
    Ok(())
}

/// An error with its causes.
fn explained(error: &tokio_postgres::Error) -> String {
    match std::error::Error::source(error) {
        Some(cause) => format!("{error}: {cause}"),
        None => error.to_string(),
    }
}

fn failed(step: &'static str, error: &tokio_postgres::Error) -> Failed {
    let cause = explained(error);
    let Some(code) = error.code() else { return Failed::Link(cause) };
    let again = [SqlState::T_R_SERIALIZATION_FAILURE, SqlState::T_R_DEADLOCK_DETECTED];
    // Classes: 08 no connection, 53 no resources, 57 an operator intervenes.
    match code.code() {
        _ if again.contains(code) => Failed::Again(cause),
        code if ["08", "53", "57"].iter().any(|class| code.starts_with(class)) => {
            Failed::Link(cause)
        }
        _ => Failed::For(Error::Refused { step, cause }),
    }
}

/// Makes the tables where there are none; refuses those of another version.
async fn prepare_tables(client: &Client) -> Result<(), Failed> {
    const STEP: &str = "prepare its tables";
    let format = match client.query_typed(sql::FORMAT, &[]).await {
        Err(error) if error.code() == Some(&SqlState::UNDEFINED_TABLE) => {
            let made = client.batch_execute(sql::TABLES).await;
            if let Err(error) = made
                // Another node has made them at the same time.
                && error.code() != Some(&SqlState::UNIQUE_VIOLATION)
            {
                return Err(failed(STEP, &error));
            }
            client.query_typed(sql::FORMAT, &[]).await
        }
        other => other,
    };
    let rows = format.map_err(|error| failed(STEP, &error))?;
    let version = rows.first().and_then(|row| row.try_get::<_, i32>(0).ok());
    match version {
        Some(sql::VERSION) => Ok(()),
        other => Err(Failed::For(Error::Damaged(format!(
            "its tables have format {other:?}, this version knows {}: take another database or schema",
            sql::VERSION
        )))),
    }
}

/// One transaction: the pointer first, which holds off everybody else of this shard.
async fn fold_in(client: &mut Client, fold: &Fold) -> Result<(), Failed> {
    let to_failed = |error| failed("fold", &error);
    let transaction = client.transaction().await.map_err(to_failed)?;
    let shard = i32::from(fold.shard.0);
    let (after, upto) = (fold.after, fold.upto);
    let start: &[Param<'_>] = &[(&shard, Type::INT4)];
    transaction.execute_typed(sql::START_POINTER, start).await.map_err(to_failed)?;
    let moved = transaction
        .execute_typed(
            sql::MOVE_POINTER,
            &[
                (&shard, Type::INT4),
                (&i64::from(after.epoch.0), Type::INT8),
                (&signed(after.number), Type::INT8),
                (&i64::from(upto.epoch.0), Type::INT8),
                (&signed(upto.number), Type::INT8),
            ],
        )
        .await
        .map_err(to_failed)?;
    if moved != 1 {
        return Err(Failed::For(Error::Moved(fold.shard)));
    }
    write_queues(&transaction, shard, &fold.queues).await.map_err(to_failed)?;
    transaction.commit().await.map_err(to_failed)
}

/// One transaction: what a queue is without the entries after `to`.
async fn rewind_in(client: &mut Client, restored: &[Advance], to: Position) -> Result<(), Failed> {
    let to_failed = |error| failed("take a queue back", &error);
    let transaction = client.transaction().await.map_err(to_failed)?;
    let changes = Changes::of(restored);
    for Advance { queue, .. } in restored {
        let (shard, queue) = of_queue(queue);
        let (seq, epoch) = (signed(to.seq.0), i64::from(to.epoch.0));
        let whose = [(&shard as _, Type::INT4), (&queue as _, Type::BYTEA)];
        let params: Vec<Param<'_>> =
            whose.into_iter().chain([(&seq as _, Type::INT8), (&epoch as _, Type::INT8)]).collect();
        let (first, all) = (&params[..3], &params[..]);
        transaction.execute_typed(sql::REWIND_ITEMS, first).await.map_err(to_failed)?;
        transaction.execute_typed(sql::REWIND_HISTORY, first).await.map_err(to_failed)?;
        transaction.execute_typed(sql::REWIND_QUEUE, all).await.map_err(to_failed)?;
        if let Some((sql, params)) = changes.puts(&shard) {
            transaction.execute_typed(sql, &params).await.map_err(to_failed)?;
        }
    }
    transaction.commit().await.map_err(to_failed)
}

async fn write_queues(
    transaction: &Transaction<'_>,
    shard: i32,
    queues: &[Advance],
) -> Result<(), tokio_postgres::Error> {
    let (changes, pasts) = (Changes::of(queues), Pasts::of(queues));
    let all = [
        changes.deletes(&shard),
        changes.puts(&shard),
        pasts.puts(&shard),
        pasts.positions(&shard),
    ];
    let statements: Vec<_> = all.into_iter().flatten().collect();
    for (sql, params) in statements {
        transaction.execute_typed(sql, &params).await?;
    }
    Ok(())
}

fn of_queue(queue: &QueueId) -> (i32, &[u8]) {
    (i32::from(queue.shard().0), queue.as_bytes())
}

fn bounds(take: Take) -> (i64, i64) {
    let bound = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
    // The first one always fits.
    (bound(take.entries), bound(take.bytes.max(1)))
}

impl LongTerm for Postgres {
    fn fold(&self, folds: Vec<Fold>) -> Answer<'_, ()> {
        Box::pin(async move {
            for fold in &folds {
                self.transact("fold", Work::Fold(fold)).await?;
            }
            Ok(())
        })
    }

    fn pointer(&self, shard: Shard) -> Answer<'_, Commit> {
        Box::pin(async move {
            let shard = i32::from(shard.0);
            let rows = self.rows("read a pointer", sql::POINTER, &[(&shard, Type::INT4)]).await?;
            rows.first().map_or(Ok(Commit::NONE), commit_of)
        })
    }

    fn position(&self, queue: QueueId) -> Answer<'_, Option<Position>> {
        Box::pin(async move {
            let (shard, queue) = of_queue(&queue);
            let params: &[Param<'_>] = &[(&shard, Type::INT4), (&queue, Type::BYTEA)];
            let rows = self.rows("read a position", sql::POSITION, params).await?;
            rows.first().map(position_of).transpose()
        })
    }

    fn item(&self, queue: QueueId, name: Name) -> Answer<'_, Option<Item>> {
        Box::pin(async move {
            let (shard, queue) = of_queue(&queue);
            let params: &[Param<'_>] = &[
                (&shard, Type::INT4),
                (&queue, Type::BYTEA),
                (&name.collection.as_str().as_bytes(), Type::BYTEA),
                (&name.key.as_bytes(), Type::BYTEA),
            ];
            let rows = self.rows("read an item", sql::ITEM, params).await?;
            rows.first().map(item_of).transpose()
        })
    }

    fn by_key(&self, queue: QueueId, keys: Keys, take: Take) -> Answer<'_, Vec<Item>> {
        Box::pin(async move {
            let (shard, queue) = of_queue(&queue);
            let (entries, bytes) = bounds(take);
            let to = keys.to.as_ref().map(|to| to.as_bytes());
            let params: &[Param<'_>] = &[
                (&shard, Type::INT4),
                (&queue, Type::BYTEA),
                (&keys.collection.as_str().as_bytes(), Type::BYTEA),
                (&keys.from.as_bytes(), Type::BYTEA),
                (&to, Type::BYTEA),
                (&entries, Type::INT8),
                (&bytes, Type::INT8),
            ];
            let rows = self.rows("read items", sql::BY_KEY, params).await?;
            rows.iter().map(item_of).collect()
        })
    }

    fn newest(&self, queue: QueueId, before: Option<Seq>, take: Take) -> Answer<'_, Vec<Item>> {
        Box::pin(async move {
            let (shard, queue) = of_queue(&queue);
            let (entries, bytes) = bounds(take);
            let before = before.map_or(i64::MAX, |before| signed(before.0));
            let params: &[Param<'_>] = &[
                (&shard, Type::INT4),
                (&queue, Type::BYTEA),
                (&before, Type::INT8),
                (&entries, Type::INT8),
                (&bytes, Type::INT8),
            ];
            let rows = self.rows("read items", sql::NEWEST, params).await?;
            rows.iter().map(item_of).collect()
        })
    }

    fn history(&self, queue: QueueId, after: Seq, take: Take) -> Answer<'_, Vec<Past>> {
        Box::pin(async move {
            let (shard, queue) = of_queue(&queue);
            let (entries, bytes) = bounds(take);
            let params: &[Param<'_>] = &[
                (&shard, Type::INT4),
                (&queue, Type::BYTEA),
                (&signed(after.0), Type::INT8),
                (&entries, Type::INT8),
                (&bytes, Type::INT8),
            ];
            let rows = self.rows("read history", sql::HISTORY, params).await?;
            rows.iter().map(past_of).collect()
        })
    }

    fn rewind(&self, queue: QueueId, to: Position, restored: Vec<Step>) -> Answer<'_, ()> {
        Box::pin(async move {
            let restored = Advance { queue, steps: restored };
            self.transact("take a queue back", Work::Rewind(&restored, to)).await
        })
    }

    fn trim_history(&self, oldest: u32) -> Answer<'_, ()> {
        Box::pin(async move {
            let oldest = i64::from(oldest);
            for shard in 0..i32::from(crate::base::ids::SHARDS) {
                // Portions, so that no statement holds many locks or takes long.
                loop {
                    let params: &[Param<'_>] =
                        &[(&shard, Type::INT4), (&oldest, Type::INT8), (&TRIM_ROWS, Type::INT8)];
                    let dropped = self.rows("drop history", sql::TRIM, params).await?;
                    if dropped.len() < TRIM_ROWS as usize {
                        break;
                    }
                }
            }
            Ok(())
        })
    }
}
