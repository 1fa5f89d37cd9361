use std::fs::{self, File};
use std::io::{Cursor, Read};
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::path::Path;

use tar::{Builder, EntryType, Header};

use super::*;

fn packed(place: Place, path: &Path) -> Vec<u8> {
    let mut bytes = Vec::new();
    pack(place, path, &mut bytes).expect("packed");
    bytes
}

/// A tree with what trees have.
fn tree(at: &Path) {
    fs::create_dir_all(at.join("inner/empty")).unwrap();
    fs::write(at.join("inner/file"), "inside").unwrap();
    fs::write(at.join("script"), "#!/bin/sh\n").unwrap();
    fs::set_permissions(at.join("script"), fs::Permissions::from_mode(0o4751)).unwrap();
    fs::set_permissions(at.join("inner"), fs::Permissions::from_mode(0o555)).unwrap();
    symlink("inner/file", at.join("link")).unwrap();
}

#[test]
fn a_tree_arrives_as_it_was_but_for_what_gives_rights() {
    let temp = tempfile::tempdir().unwrap();
    let (from, to) = (temp.path().join("from"), temp.path().join("to"));
    tree(&from);
    let archive = packed(Place::Here, &from);
    let copied = unpack(Place::Here, &to, &archive[..]).expect("unpacked");
    assert_eq!((copied.files, copied.bytes, copied.left_out.len()), (6, 16, 0));
    assert_eq!(fs::read_to_string(to.join("link")).unwrap(), "inside");
    let (script, original) = (
        fs::metadata(to.join("script")).unwrap(),
        fs::metadata(from.join("script")).unwrap(),
    );
    assert_eq!(script.mode() & 0o7777, 0o751, "without set-user-id");
    assert_eq!(script.mtime(), original.mtime());
    assert_eq!(fs::metadata(to.join("inner")).unwrap().mode() & 0o777, 0o555);
    assert!(to.join("inner/empty").is_dir());
    // Into a directory that is there, under its own name; and over what is there.
    for _ in 0..2 {
        fs::set_permissions(to.join("inner"), fs::Permissions::from_mode(0o755)).unwrap();
        unpack(Place::Here, &to, &packed(Place::Here, &from.join("script"))[..]).expect("unpacked");
        assert_eq!(fs::read_to_string(to.join("script")).unwrap(), "#!/bin/sh\n");
    }
    assert_eq!(fs::read_dir(&to).unwrap().count(), 3, "no part is left");
}

fn archive(entries: &[(EntryType, &str, &str)]) -> Vec<u8> {
    let mut builder = Builder::new(Vec::new());
    for (kind, name, data) in entries {
        let mut header = Header::new_gnu();
        header.set_entry_type(*kind);
        header.set_mode(0o644);
        let link = matches!(kind, EntryType::Symlink | EntryType::Link);
        header.set_size(if link { 0 } else { data.len() as u64 });
        // As hostile as it comes: the library would refuse some of these names.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        if link {
            header.as_old_mut().linkname[..data.len()].copy_from_slice(data.as_bytes());
        }
        header.set_cksum();
        builder
            .append(&header, if link { "" } else { data }.as_bytes())
            .unwrap();
    }
    builder.into_inner().unwrap()
}

#[test]
fn nothing_is_written_outside_of_the_place_whatever_the_archive_says() {
    use EntryType::{Directory, Link, Regular, Symlink};
    let evil = |name| archive(&[(Regular, name, "evil")]);
    let attacks = [
        evil("../out"),
        evil("/out"),
        evil("top/../../out"),
        archive(&[(Directory, "top", ""), (Regular, "other", "evil")]),
        archive(&[
            (Directory, "top", ""),
            (Symlink, "top/l", "../.."),
            (Regular, "top/l/out", "evil"),
        ]),
        archive(&[
            (Directory, "top", ""),
            (Symlink, "top/l", "."),
            (Regular, "top/l/out", "evil"),
        ]),
        archive(&[
            (Directory, "top", ""),
            (Link, "top/l", "../../out"),
            (Regular, "top/l", "evil"),
        ]),
    ];
    for (number, attack) in attacks.iter().enumerate() {
        for place in [Place::Here, Place::Container] {
            let temp = tempfile::tempdir().unwrap();
            let to = temp.path().join("deep/to");
            fs::create_dir_all(&to).unwrap();
            let ended = unpack(place, &to, &attack[..]);
            assert!(ended.is_err() || number == 6, "{number}: {ended:?}");
            let outside: Vec<_> = fs::read_dir(temp.path())
                .unwrap()
                .chain(fs::read_dir(to.parent().unwrap()).unwrap())
                .collect();
            assert_eq!(outside.len(), 2, "{number}: {outside:?}");
            assert!(!Path::new("/out").exists());
        }
    }
}

#[test]
fn links_out_of_the_copy_are_not_made_here_and_those_that_are_there_not_followed() {
    let temp = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        (EntryType::Directory, "top", ""),
        (EntryType::Symlink, "top/out", "/etc/passwd"),
        (EntryType::Fifo, "top/pipe", ""),
    ]);
    let copied = unpack(Place::Here, temp.path(), &bytes[..]).expect("unpacked");
    assert_eq!(copied.left_out.len(), 2, "{:?}", copied.left_out);
    assert_eq!(fs::read_dir(temp.path().join("top")).unwrap().count(), 0);
    // A file takes the place of a link, and leaves alone what that points to.
    fs::write(temp.path().join("victim"), "safe").unwrap();
    symlink("../victim", temp.path().join("top/file")).unwrap();
    let bytes = archive(&[(EntryType::Regular, "file", "new")]);
    unpack(Place::Here, &temp.path().join("top"), &bytes[..]).expect("unpacked");
    assert_eq!(fs::read_to_string(temp.path().join("victim")).unwrap(), "safe");
    assert_eq!(fs::read_to_string(temp.path().join("top/file")).unwrap(), "new");
    // A link in the place of a directory is not gone through.
    symlink("..", temp.path().join("top/sub")).unwrap();
    let bytes = archive(&[
        (EntryType::Directory, "top", ""),
        (EntryType::Regular, "top/sub/victim", "evil"),
    ]);
    assert!(unpack(Place::Here, temp.path(), &bytes[..]).is_err());
    assert_eq!(fs::read_to_string(temp.path().join("victim")).unwrap(), "safe");
}

#[test]
fn what_breaks_off_leaves_nothing_under_the_name() {
    let temp = tempfile::tempdir().unwrap();
    let whole = archive(&[(EntryType::Regular, "file", &"x".repeat(5000))]);
    fs::write(temp.path().join("file"), "before").unwrap();
    for length in [100, 600, 3000, 5511] {
        assert!(unpack(Place::Here, temp.path(), &whole[..length]).is_err(), "{length}");
        let left: Vec<_> = fs::read_dir(temp.path()).unwrap().flatten().collect();
        assert_eq!(left.len(), 1, "{left:?}");
        assert_eq!(fs::read_to_string(temp.path().join("file")).unwrap(), "before");
    }
    let nothing = unpack(Place::Here, temp.path(), &[0; 1024][..]);
    assert!(matches!(nothing, Err(CopyError::Nothing)), "{nothing:?}");
}

#[test]
fn what_is_no_file_is_refused_or_left_out_and_never_waited_for() {
    let temp = tempfile::tempdir().unwrap();
    let pipe = temp.path().join("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for path in [pipe.as_path(), Path::new("/dev/null")] {
        let refused = pack(Place::Here, path, Vec::new());
        assert!(matches!(refused, Err(CopyError::Unsuitable { .. })), "{refused:?}");
    }
    let mut bytes = Vec::new();
    let copied = pack(Place::Here, temp.path(), &mut bytes).expect("packed");
    assert_eq!((copied.files, copied.left_out.len()), (1, 1), "{copied:?}");
}

#[test]
fn magic_links_lead_nowhere_from_a_container() {
    for path in [
        "/proc/self/exe",
        "/proc/self/root/etc/passwd",
        "/proc/self/cwd/Cargo.toml",
    ] {
        let refused = pack(Place::Container, Path::new(path), Vec::new());
        assert!(matches!(refused, Err(CopyError::Io { .. })), "{path}: {refused:?}");
        let archive = archive(&[(EntryType::Regular, "file", "evil")]);
        assert!(
            unpack(Place::Container, Path::new(path), &archive[..]).is_err(),
            "{path}"
        );
    }
}

#[test]
fn a_file_that_grows_is_copied_as_it_was_and_one_that_shrinks_is_an_error() {
    /// Changes the file when its header has been written.
    struct Changing<'a> {
        out: Cursor<Vec<u8>>,
        file: &'a Path,
        to: u64,
    }
    impl io::Write for Changing<'_> {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            File::options().write(true).open(self.file)?.set_len(self.to)?;
            self.out.write(bytes)
        }
        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }
    let temp = tempfile::tempdir().unwrap();
    let file = temp.path().join("file");
    let size = 1 << 20;
    for (to, fine) in [(2 * size, true), (10, false)] {
        File::create(&file).unwrap().set_len(size).unwrap();
        let mut out = Changing {
            out: Cursor::default(),
            file: &file,
            to,
        };
        let packed = pack(Place::Here, &file, &mut out);
        if !fine {
            assert!(matches!(packed, Err(CopyError::Changed(_))), "{packed:?}");
            continue;
        }
        assert_eq!(packed.unwrap().bytes, size);
        let bytes = out.out.into_inner();
        let mut archive = tar::Archive::new(&bytes[..]);
        let mut read = Vec::new();
        archive
            .entries()
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .read_to_end(&mut read)
            .unwrap();
        assert_eq!(read.len() as u64, size);
    }
}
