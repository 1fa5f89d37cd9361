//! The output of a task, as a stream.

use futures::{Stream, TryStreamExt};
use http::Method;
use http_body_util::BodyExt;

use crate::{Call, Client, DEADLINE, Error, Result, segment};

/// Which part of the output, and how.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Go on while the task runs.
    pub follow: bool,
    /// Of the attempt before the last.
    pub previous: bool,
    /// Only so many lines from the end.
    pub tail_lines: Option<u64>,
    /// Only what is younger than so many seconds.
    pub since_seconds: Option<u64>,
    /// With a timestamp before each line.
    pub timestamps: bool,
    /// Of this attempt.
    pub attempt: Option<u32>,
}

impl LogOptions {
    fn query(&self) -> String {
        let mut parts = Vec::new();
        let flags = [
            ("follow", self.follow),
            ("previous", self.previous),
            ("timestamps", self.timestamps),
        ];
        parts.extend(
            flags
                .iter()
                .filter(|(_, on)| *on)
                .map(|(name, _)| format!("{name}=true")),
        );
        let numbers = [
            ("tailLines", self.tail_lines),
            ("sinceSeconds", self.since_seconds),
            ("attempt", self.attempt.map(u64::from)),
        ];
        parts.extend(
            numbers
                .iter()
                .filter_map(|(name, value)| value.map(|value| format!("{name}={value}"))),
        );
        parts.join("&")
    }
}

impl Client {
    /// The output of a task. Ends with the output, or, when following, with the task. Silence is not an error.
    pub async fn log(
        &self,
        namespace: &str,
        task: &str,
        options: &LogOptions,
    ) -> Result<impl Stream<Item = Result<bytes::Bytes>> + Send + use<>> {
        let (namespace, task) = (segment(namespace), segment(task));
        let path = format!(
            "/apis/muster.dev/v1/namespaces/{namespace}/tasks/{task}/log?{}",
            options.query()
        );
        let opening = tokio::time::timeout(DEADLINE, self.open(Call::new(Method::GET, path, "output")));
        let response = opening.await.map_err(|_| Error::Timeout(DEADLINE))??;
        let stream = response.into_body().into_data_stream();
        Ok(stream.map_err(|source| Error::Transport(Box::new(source))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_was_asked_for_is_in_the_query() {
        assert_eq!(LogOptions::default().query(), "");
        let options = LogOptions {
            follow: true,
            tail_lines: Some(10),
            attempt: Some(2),
            ..LogOptions::default()
        };
        assert_eq!(options.query(), "follow=true&tailLines=10&attempt=2");
    }
}
