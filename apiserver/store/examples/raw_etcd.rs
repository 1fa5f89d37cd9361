//! What etcd itself does, for `hack/bench` to hold the API server's figures against: prints one line of JSON.
//!
//!     raw_etcd create|get|swap --endpoint URL --clients 64 --channels 8 --count 20000 --bytes 1200
//!
//! `create` puts values under keys that it compares to be absent, `get` reads them, `swap` reads each and puts it back if it has not
//! changed. Each client has one request under way, and clients share connections (`--channels`).

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use etcd_client::{Client, Compare, CompareOp, Txn, TxnOp};
use tokio::task::JoinSet;
use tokio::time::Instant;

type Failure = Box<dyn std::error::Error + Send + Sync>;

#[derive(Clone, Copy, PartialEq)]
enum Work {
    Create,
    Get,
    Swap,
}

#[derive(Clone)]
struct Args {
    work: Work,
    endpoint: String,
    clients: usize,
    channels: usize,
    count: usize,
    bytes: usize,
    prefix: String,
}

impl Args {
    fn parse() -> Result<Args, Failure> {
        let mut words = std::env::args().skip(1);
        let work = match words.next().as_deref() {
            Some("create") => Work::Create,
            Some("get") => Work::Get,
            Some("swap") => Work::Swap,
            other => return Err(format!("create, get or swap, not {other:?}").into()),
        };
        let mut args = Args {
            work,
            endpoint: String::new(),
            clients: 64,
            channels: 8,
            count: 20_000,
            bytes: 1_200,
            prefix: "/raw".to_owned(),
        };
        while let Some(flag) = words.next() {
            let value = words.next().ok_or_else(|| format!("{flag} has no value"))?;
            match flag.as_str() {
                "--endpoint" => args.endpoint = value,
                "--clients" => args.clients = value.parse()?,
                "--channels" => args.channels = value.parse()?,
                "--count" => args.count = value.parse()?,
                "--bytes" => args.bytes = value.parse()?,
                "--prefix" => args.prefix = value,
                _ => return Err(format!("there is no flag {flag}").into()),
            }
        }
        Ok(args)
    }
}

async fn request(client: &mut Client, args: &Args, number: usize) -> Result<(), Failure> {
    let key = format!("{}/{number}", args.prefix);
    let absent = |key: &str| Compare::create_revision(key, CompareOp::Equal, 0);
    let write = |compare, value: Vec<u8>| {
        let put = TxnOp::put(key.as_str(), value, None);
        Txn::new().when([compare]).and_then([put])
    };
    if args.work == Work::Create {
        let answer = client.txn(write(absent(&key), vec![b'x'; args.bytes])).await?;
        return if answer.succeeded() {
            Ok(())
        } else {
            Err("the key is there already".into())
        };
    }
    let found = client.get(key.as_str(), None).await?;
    let entry = found.kvs().first().ok_or("the key is not there")?;
    if args.work == Work::Swap {
        let same = Compare::mod_revision(key.as_str(), CompareOp::Equal, entry.mod_revision());
        client.txn(write(same, entry.value().to_vec())).await?;
    }
    Ok(())
}

#[tokio::main]
async fn main() -> Result<(), Failure> {
    let args = Args::parse()?;
    let next = Arc::new(AtomicUsize::new(0));
    let mut channels = Vec::new();
    for _ in 0..args.channels {
        channels.push(Client::connect([&args.endpoint], None).await?);
    }
    let began = Instant::now();
    let mut running = JoinSet::new();
    for number in 0..args.clients {
        let (args, next, mut client) = (args.clone(), next.clone(), channels[number % args.channels].clone());
        running.spawn(async move {
            let mut took = Vec::new();
            loop {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= args.count {
                    return Ok::<_, Failure>(took);
                }
                let began = Instant::now();
                request(&mut client, &args, number).await?;
                took.push(began.elapsed().as_secs_f64() * 1e3);
            }
        });
    }
    let mut took = Vec::new();
    while let Some(ended) = running.join_next().await {
        took.extend(ended??);
    }
    let seconds = began.elapsed().as_secs_f64();
    took.sort_by(f64::total_cmp);
    let at = |part: usize| took.get(took.len() * part / 100).copied().unwrap_or_default();
    let rate = took.len() as f64 / seconds;
    println!(
        r#"{{"seconds":{seconds:.3},"rate":{rate:.0},"p50_ms":{:.3},"p99_ms":{:.3}}}"#,
        at(50),
        at(99)
    );
    Ok(())
}
