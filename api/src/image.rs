//! Names of images, by the grammar of OCI: `[domain[:port]/]path[:tag][@digest]`.
//!
//! It promises: what is parsed here holds no component `.` or `..`, none that is empty, and no separator but `/`; so the name of an image
//! can be the name of a directory. What must never happen here: a name completed with a registry that nobody wrote.
//!
//! Source: the reference grammar of the OCI distribution project (`reference/reference.go`). Tested by tables.

use std::fmt;
use std::str::FromStr;

/// The longest name, without tag and digest.
const NAME_MAX: usize = 255;
const TAG_MAX: usize = 128;

/// The name of an image; without tag and digest it means the tag `latest`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ImageReference {
    name: String,
    tag: Option<String>,
    digest: Option<String>,
}

/// Why a text is not the name of an image.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}; write [registry/]name[:tag][@digest], such as busybox:1.36 or registry.example:5000/team/app@sha256:…")]
pub struct ImageReferenceError(String);

impl ImageReference {
    /// The registry, if one was written, and the path: all but tag and digest.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The registry, if one was written: what could be a part of the path is none.
    pub fn registry(&self) -> Option<&str> {
        let (first, _) = self.name.split_once('/')?;
        (first.contains(['.', ':']) || first == "localhost").then_some(first)
    }

    /// The tag, if one was written.
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest, such as `sha256:…`.
    pub fn digest(&self) -> Option<&str> {
        self.digest.as_deref()
    }
}

impl fmt::Display for ImageReference {
    /// With tag or digest always: equal images have equal texts.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        match (&self.tag, &self.digest) {
            (Some(tag), Some(digest)) => write!(f, ":{tag}@{digest}"),
            (Some(tag), None) => write!(f, ":{tag}"),
            (None, Some(digest)) => write!(f, "@{digest}"),
            (None, None) => f.write_str(":latest"),
        }
    }
}

impl FromStr for ImageReference {
    type Err = ImageReferenceError;

    fn from_str(text: &str) -> Result<ImageReference, ImageReferenceError> {
        let wrong = |why: String| Err(ImageReferenceError(why));
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest)),
            None => (text, None),
        };
        // A colon before the last slash is that of a port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if name.is_empty() {
            return wrong("it has no name".to_owned());
        }
        if name.len() > NAME_MAX {
            return wrong(format!("its name is longer than {NAME_MAX} characters"));
        }
        if let Some(why) = name_problem(name) {
            return wrong(why);
        }
        if let Some(tag) = tag.filter(|tag| !is_tag(tag)) {
            return wrong(format!(
                "its tag `{tag}` must be at most {TAG_MAX} letters, digits, '_', '.' or '-', not starting with '.' or '-'"
            ));
        }
        if let Some(digest) = digest.filter(|digest| !is_digest(digest)) {
            return wrong(format!(
                "its digest `{digest}` must be an algorithm, ':' and lowercase hexadecimal digits, 64 of them for sha256"
            ));
        }
        Ok(ImageReference {
            name: name.to_owned(),
            tag: tag.map(str::to_owned),
            digest: digest.map(str::to_owned),
        })
    }
}

fn name_problem(name: &str) -> Option<String> {
    let mut parts = name.split('/').peekable();
    let first = parts.next().unwrap_or_default();
    let has_path = parts.peek().is_some();
    let is_registry = has_path && is_domain(first);
    if !is_registry && !is_component(first) {
        let part = if has_path { "registry or part" } else { "name" };
        return Some(format!("its {part} `{first}` must be {COMPONENT}"));
    }
    let wrong = parts.find(|part| !is_component(part))?;
    Some(format!("the part `{wrong}` of its name must be {COMPONENT}"))
}

const COMPONENT: &str = "lowercase letters and digits, separated by '.', '_', '__' or dashes";

/// `[a-z0-9]+` with separators `.`, `_`, `__` or any number of `-` in between.
fn is_component(text: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let separator = |text: &str| matches!(text, "." | "_" | "__") || text.bytes().all(|b| b == b'-');
    text.starts_with(alphanumeric)
        && text.ends_with(alphanumeric)
        && text
            .split(alphanumeric)
            .all(|between| between.is_empty() || separator(between))
}

/// A host name or an address, with a port perhaps.
fn is_domain(text: &str) -> bool {
    let (host, port) = match text.rsplit_once(':') {
        Some((host, port)) if !port.contains(']') => (host, Some(port)),
        _ => (text, None),
    };
    let label = |label: &str| {
        let bytes = label.as_bytes();
        let edge = |byte: Option<&u8>| byte.is_some_and(u8::is_ascii_alphanumeric);
        edge(bytes.first()) && edge(bytes.last()) && bytes.iter().all(|b| b.is_ascii_alphanumeric() || *b == b'-')
    };
    let address = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
    let host_is_fine = match address {
        Some(address) => !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':'),
        None => host.split('.').all(label),
    };
    let port_is_fine = |port: &str| !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    host_is_fine && port.is_none_or(port_is_fine)
}

fn is_tag(text: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    let bytes = text.as_bytes();
    bytes.len() <= TAG_MAX
        && bytes.first().copied().is_some_and(word)
        && bytes.iter().all(|b| word(*b) || matches!(b, b'.' | b'-'))
}

fn is_digest(text: &str) -> bool {
    let Some((algorithm, hex)) = text.split_once(':') else {
        return false;
    };
    let part = |part: &str| {
        part.starts_with(|c: char| c.is_ascii_alphabetic()) && part.bytes().all(|b| b.is_ascii_alphanumeric())
    };
    let long_enough = if algorithm == "sha256" {
        hex.len() == 64
    } else {
        hex.len() >= 32
    };
    algorithm.split(['-', '_', '+', '.']).all(part)
        && long_enough
        && hex.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Why `text` is not the name of an image; `None`: it is one.
pub fn image_problem(text: &str) -> Option<String> {
    text.parse::<ImageReference>().err().map(|error| error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_images_are_read_and_completed_with_a_tag_only() {
        let digest = format!("sha256:{}", "0a".repeat(32));
        for (text, full) in [
            ("busybox", "busybox:latest"),
            ("busybox:1.36", "busybox:1.36"),
            ("a/b/c", "a/b/c:latest"),
            ("localhost:5000/a", "localhost:5000/a:latest"),
            ("REGISTRY.example/team/app:V1_x", "REGISTRY.example/team/app:V1_x"),
            ("[::1]:5000/a:b", "[::1]:5000/a:b"),
            ("a__b.c---d/e_f:x", "a__b.c---d/e_f:x"),
            (&format!("a@{digest}"), &format!("a@{digest}")),
            (&format!("a:t@{digest}"), &format!("a:t@{digest}")),
        ] {
            let parsed: ImageReference = text.parse().expect(text);
            assert_eq!(parsed.to_string(), full, "{text}");
        }
        let parsed: ImageReference = format!("h:1/a:t@{digest}").parse().expect("a name");
        assert_eq!((parsed.name(), parsed.digest()), ("h:1/a", Some(digest.as_str())));
    }

    #[test]
    fn what_could_leave_a_directory_or_is_no_name_is_refused() {
        for text in [
            "",
            ":",
            "@",
            ":tag",
            "/",
            "a/",
            "/a",
            "a//b",
            "..",
            "../a",
            "a/../b",
            "a/..",
            ".",
            "./a",
            "a/./b",
            "a..b",
            "a___b",
            "-a",
            "a-",
            "A",
            "a/B",
            "A:b",
            "a b",
            "a\0",
            "a\n",
            "ä",
            "a:",
            "a:.x",
            "a:-x",
            "a:../x",
            "a:b/../c",
            "a:b:c",
            "a@",
            "a@sha256:",
            "a@sha256:..",
            "a@../x",
            "a@sha256:0A",
            "a@b@c",
            "host:/a",
            "host:x/a",
            "[]:1/a",
            "\\a",
            &"a".repeat(256),
            &format!("a:{}", "t".repeat(129)),
            &format!("a@sha256:{}", "0".repeat(63)),
        ] {
            let problem = image_problem(text);
            assert!(
                problem.is_some_and(|why| why.contains("such as busybox:1.36")),
                "{text:?}"
            );
        }
    }

    #[test]
    fn every_part_of_a_name_is_a_plain_file_name() {
        for text in ["a.b:1/c/d:e", "localhost/x_y:z", "[::1]/a"] {
            let full = text.parse::<ImageReference>().expect(text).to_string();
            let plain = |part: &str| !part.is_empty() && part != "." && part != ".." && part.len() <= 255;
            assert!(full.split('/').all(plain), "{full}");
        }
    }
}
