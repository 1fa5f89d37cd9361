//! Power cuts: what was not synced is lost, or half of it, in any order.

use std::sync::Mutex;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use redb::StorageBackend;

use super::*;
use crate::types::Op;

/// The sectors that a disk writes whole.
const SECTOR: usize = 512;

/// What is on the platter, what the machine believes is on the platter, and what was written since the last sync.
#[derive(Debug, Default)]
struct Image {
    durable: Vec<u8>,
    volatile: Vec<u8>,
    unsynced: Vec<(usize, Vec<u8>)>,
}

impl Image {
    /// What is there when the power is back: of the writes since the last sync, some sectors.
    fn cut(&self, random: &mut StdRng) -> Vec<u8> {
        let mut image = self.durable.clone();
        for (offset, data) in &self.unsynced {
            for (index, sector) in data.chunks(SECTOR).enumerate() {
                let at = offset + index * SECTOR;
                if random.random_bool(0.5) {
                    image.resize(image.len().max(at + sector.len()), 0);
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        image
    }
}

#[derive(Clone, Debug, Default)]
struct Platter(Arc<Mutex<Image>>);

impl Platter {
    fn holding(image: Vec<u8>) -> Platter {
        Platter(Arc::new(Mutex::new(Image {
            durable: image.clone(),
            volatile: image,
            unsynced: Vec::new(),
        })))
    }
}

impl StorageBackend for Platter {
    fn len(&self) -> std::io::Result<u64> {
        Ok(self.0.lock().unwrap().volatile.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        let offset = usize::try_from(offset).unwrap();
        let image = self.0.lock().unwrap();
        let bytes = image.volatile.get(offset..offset + out.len());
        out.copy_from_slice(bytes.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))?);
        Ok(())
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        // File systems journal lengths, so this is not what is lost.
        let (len, mut image) = (usize::try_from(len).unwrap(), self.0.lock().unwrap());
        image.volatile.resize(len, 0);
        image.durable.resize(len, 0);
        image.unsynced.retain(|(offset, data)| offset + data.len() <= len);
        Ok(())
    }

    fn sync_data(&self) -> std::io::Result<()> {
        let mut image = self.0.lock().unwrap();
        image.durable = image.volatile.clone();
        image.unsynced.clear();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        let (offset, mut image) = (usize::try_from(offset).unwrap(), self.0.lock().unwrap());
        image.volatile[offset..offset + data.len()].copy_from_slice(data);
        image.unsynced.push((offset, data.to_vec()));
        Ok(())
    }
}

fn open(platter: &Platter) -> EmbeddedStore {
    // Without a cache everything is written as it comes, and so can be lost.
    let database = redb::Builder::new()
        .set_cache_size(0)
        .create_with_backend(platter.clone())
        .unwrap();
    EmbeddedStore::start(database, &Options::default()).unwrap()
}

async fn put(store: &EmbeddedStore, key: u64, value: u64) -> Revision {
    let op = Op::put(Key::new(format!("k/{key}")), format!("{value:0>200}"));
    store
        .commit(Txn {
            compares: vec![],
            ops: vec![op],
        })
        .await
        .unwrap()
}

/// The image is taken while commits are under way: all that was acknowledged before has to be in it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn acknowledged_writes_survive_power_cuts() {
    let mut random = StdRng::seed_from_u64(1);
    let mut platter = Platter::default();
    let mut lost = 0;
    let mut expected = 0;
    for round in 0..60_u64 {
        let store = Arc::new(open(&platter));
        assert!(
            store.revision().await.unwrap() >= expected,
            "round {round}: acknowledged revisions are gone"
        );
        if round > 0 {
            let marker = store
                .get(&Key::new("k/marker"))
                .await
                .unwrap()
                .expect("it was acknowledged");
            assert!(
                marker.value.ends_with((round - 1).to_string().as_bytes()),
                "round {round}: {marker:?}"
            );
        }
        for number in 0..random.random_range(0..20) {
            put(&store, number, round).await;
        }
        let op = Op::put(Key::new("k/marker"), format!("round {round}"));
        expected = store
            .commit(Txn {
                compares: vec![],
                ops: vec![op],
            })
            .await
            .unwrap();
        let busy = Arc::clone(&store);
        let writing =
            tokio::spawn(async move { futures::future::join_all((0..8).map(|n| put(&busy, n, round))).await });
        while writing_has_not_begun(&platter) && !writing.is_finished() {
            tokio::task::yield_now().await;
        }
        let image = {
            let image = platter.0.lock().unwrap();
            lost += u64::from(!image.unsynced.is_empty());
            image.cut(&mut random)
        };
        writing.await.unwrap();
        platter = Platter::holding(image);
    }
    assert!(lost > 20, "only {lost} of 60 cuts lost anything");
}

fn writing_has_not_begun(platter: &Platter) -> bool {
    platter.0.lock().unwrap().unsynced.is_empty()
}
