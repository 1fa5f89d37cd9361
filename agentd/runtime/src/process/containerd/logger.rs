//! How containerd is told of our shim: as the logger of a container. Pure.

use std::path::Path;

use super::super::config::Config as Base;
use super::super::directory::Directory;
use crate::{Error, percent};

/// How containerd's shim starts ours: this very executable, also after its file was replaced.
pub(super) fn logger(base: &Base, directory: &Directory) -> Result<String, Error> {
    let [word] = base.shim.args.as_slice() else {
        return Err(Error::Invalid(
            "a shim for containerd is run with one word before the directory".to_owned(),
        ));
    };
    let program = match base.shim.program.strip_prefix("/proc/self") {
        Ok(rest) => Path::new("/proc").join(std::process::id().to_string()).join(rest),
        Err(_) => base.shim.program.clone(),
    };
    let (program, word) = (program.as_os_str(), word.as_os_str());
    let directory = directory.path().as_os_str();
    let encode = |text: &std::ffi::OsStr| percent::encode(text.as_encoded_bytes());
    Ok(format!(
        "binary://{}?{}={}",
        encode(program),
        encode(word),
        encode(directory)
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logger_is_this_executable_with_one_word_and_the_directory() {
        let base = Base::new("/var/lib/muster");
        let directory = Directory::at("/var/lib/a b&c=d/ü".into());
        let uri = logger(&base, &directory).expect("one word");
        let program = format!("binary:///proc/{}/exe", std::process::id());
        assert_eq!(uri, format!("{program}?shim=/var/lib/a%20b%26c%3Dd/%C3%BC"));
    }
}
