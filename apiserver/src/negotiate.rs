//! Which form of an answer a client takes.

use http::{HeaderMap, header};

use crate::error::{ApiError, Result};

/// A form of an object or list.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// Whole objects.
    Full,
    /// Rows of a table of this `apiVersion`.
    Table(&'static str),
    /// Only the metadata.
    Partial,
}

/// The first clause, by quality and then order, that can be satisfied. No `Accept` header is JSON.
pub fn form(headers: &HeaderMap) -> Result<Form> {
    let mut clauses: Vec<(u32, &str)> = Vec::new();
    for value in headers.get_all(header::ACCEPT) {
        let text = value.to_str().map_err(|_| ApiError::not_acceptable())?;
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        clauses.extend(parts.map(|part| (quality(part), part)));
    }
    if clauses.is_empty() {
        return Ok(Form::Full);
    }
    clauses.sort_by_key(|(quality, _)| std::cmp::Reverse(*quality));
    let wanted = clauses.into_iter().filter(|(quality, _)| *quality > 0);
    wanted
        .filter_map(|(_, clause)| satisfy(clause))
        .next()
        .ok_or_else(ApiError::not_acceptable)
}

fn parameters(clause: &str) -> impl Iterator<Item = (&str, &str)> {
    clause.split(';').skip(1).filter_map(|parameter| {
        let (key, value) = parameter.split_once('=')?;
        Some((key.trim(), value.trim().trim_matches('"')))
    })
}

/// In thousandths; what is malformed counts as full.
fn quality(clause: &str) -> u32 {
    let quality = parameters(clause).find(|(key, _)| *key == "q");
    let quality = quality.and_then(|(_, value)| value.parse::<f32>().ok());
    quality.map_or(1000, |quality| (quality.clamp(0.0, 1.0) * 1000.0) as u32)
}

fn satisfy(clause: &str) -> Option<Form> {
    let media = clause.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    if !["application/json", "application/*", "*/*"].contains(&media.as_str()) {
        return None;
    }
    let parameter = |name: &str| parameters(clause).find(|(key, _)| *key == name).map(|(_, value)| value);
    match parameter("as") {
        None => Some(Form::Full),
        Some(kind) => {
            let group = parameter("g").is_none_or(|group| group == "meta.k8s.io");
            let version = parameter("v").unwrap_or("v1");
            match (kind, version) {
                ("Table", "v1") => Some(Form::Table("meta.k8s.io/v1")),
                ("Table", "v1beta1") => Some(Form::Table("meta.k8s.io/v1beta1")),
                ("PartialObjectMetadata" | "PartialObjectMetadataList", "v1") => Some(Form::Partial),
                _ => None,
            }
            .filter(|_| group)
        }
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderValue;

    use super::*;

    fn check(accept: &str, expect: Option<Form>) {
        let mut headers = HeaderMap::new();
        headers.insert(header::ACCEPT, HeaderValue::from_str(accept).expect(accept));
        assert_eq!(form(&headers).ok(), expect, "{accept}");
    }

    #[test]
    fn the_first_clause_that_can_be_satisfied_wins() {
        assert_eq!(form(&HeaderMap::new()).ok(), Some(Form::Full));
        check("", Some(Form::Full));
        check("*/*", Some(Form::Full));
        check(
            "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
            Some(Form::Table("meta.k8s.io/v1")),
        );
        check(
            "application/json;as=Other;v=v1;g=meta.k8s.io,application/json",
            Some(Form::Full),
        );
        check("application/json;as=Table;v=v9;g=meta.k8s.io", None);
        check("application/vnd.kubernetes.protobuf,application/json", Some(Form::Full));
        check("application/vnd.kubernetes.protobuf, */*", Some(Form::Full));
        check(
            "application/json;q=0.1,application/json;as=PartialObjectMetadata;g=meta.k8s.io;v=v1",
            Some(Form::Partial),
        );
        check("text/html", None);
        check("application/vnd.kubernetes.protobuf", None);
        check("application/json;q=0", None);
    }
}
