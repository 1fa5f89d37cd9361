//! Variables that are in a file: what must not be written down anywhere else. See [`crate::ContainerSpec::variables`].

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::OsStringExt as _;
use std::path::Path;

/// Reads a file of variables: `NAME=value` and a NUL each.
pub(super) fn read(file: &Path) -> io::Result<Vec<(OsString, OsString)>> {
    let bytes = fs::read(file)?;
    let words = bytes.split(|byte| *byte == 0).filter(|word| !word.is_empty());
    let pair = |word: &[u8]| {
        let at = word.iter().position(|byte| *byte == b'=').filter(|at| *at > 0);
        // Says nothing of what is in it.
        let at = at.ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, "a variable without a name"))?;
        let (name, value) = (word[..at].to_vec(), word[at + 1..].to_vec());
        Ok((OsString::from_vec(name), OsString::from_vec(value)))
    };
    words.map(pair).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_may_hold_anything_but_a_nul() {
        let temp = tempfile::tempdir().expect("a directory");
        let file = temp.path().join("variables");
        fs::write(&file, "A=1\0B=a=b\nc\0EMPTY=\0").expect("written");
        let pair = |name: &str, value: &str| (OsString::from(name), OsString::from(value));
        let expect = [pair("A", "1"), pair("B", "a=b\nc"), pair("EMPTY", "")];
        assert_eq!(read(&file).expect("read"), expect);
        fs::write(&file, "=s3cret\0").expect("written");
        let error = read(&file).expect_err("no name").to_string();
        assert!(!error.contains("s3cret"));
    }
}
