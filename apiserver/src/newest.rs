//! How far the store is, asked once for many.
//!
//! Every read of the API asks for the store's revision, so that it shows whatever was acknowledged, by this server or by another. With
//! etcd that is a round of its members. Whoever asks while another question is on its way waits for the *next* one, which begins after
//! it has asked, and shares its answer with all who wait: one question at a time, however many ask. What must never happen here: an
//! answer to a question that was put before its asker came. Tested below.

use std::sync::atomic::{AtomicU64, Ordering};

use muster_store::{Error, Revision};
use tokio::sync::Mutex;

/// See the module.
#[derive(Debug, Default)]
pub(crate) struct Newest {
    arrivals: AtomicU64,
    /// Who is covered by the last answer, and that.
    answered: Mutex<(u64, Option<Result<Revision, Error>>)>,
}

impl Newest {
    /// The revision, from a question that was put after this was called.
    pub(crate) async fn ask(&self, question: impl Future<Output = Result<Revision, Error>>) -> Result<Revision, Error> {
        let own = self.arrivals.fetch_add(1, Ordering::SeqCst) + 1;
        let mut answered = self.answered.lock().await;
        if let (covered, Some(answer)) = &*answered
            && *covered >= own
        {
            return answer.clone();
        }
        let covered = self.arrivals.load(Ordering::SeqCst);
        let answer = question.await;
        *answered = (covered, Some(answer.clone()));
        answer
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use tokio::time::sleep;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn many_share_an_answer_that_is_no_older_than_their_question() {
        let (newest, asked) = (Arc::new(Newest::default()), Arc::new(AtomicU64::new(0)));
        let ask = |after_ms: u64| {
            let (newest, asked) = (newest.clone(), asked.clone());
            tokio::spawn(async move {
                sleep(Duration::from_millis(after_ms)).await;
                let question = async {
                    // What the store says is what it had when it was asked.
                    let revision = asked.fetch_add(1, Ordering::SeqCst);
                    sleep(Duration::from_millis(10)).await;
                    Ok(revision)
                };
                newest.ask(question).await.unwrap()
            })
        };
        let first = ask(0);
        let waiting: Vec<_> = (1..=9).map(ask).collect();
        let late = ask(15);
        assert_eq!(first.await.unwrap(), 0);
        for waiting in waiting {
            assert_eq!(waiting.await.unwrap(), 1, "all nine share one");
        }
        assert_eq!(late.await.unwrap(), 2);
        assert_eq!(asked.load(Ordering::SeqCst), 3);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_holds_nobody_up() {
        let newest = Newest::default();
        let hung = newest.ask(std::future::pending());
        assert!(tokio::time::timeout(Duration::from_secs(1), hung).await.is_err());
        assert_eq!(newest.ask(async { Ok(7) }).await.unwrap(), 7);
        let failed = newest.ask(async { Err(Error::Unavailable("x".to_owned())) }).await;
        assert!(failed.is_err());
        assert_eq!(
            newest.ask(async { Ok(8) }).await.unwrap(),
            8,
            "a failure is nobody else's"
        );
    }
}
