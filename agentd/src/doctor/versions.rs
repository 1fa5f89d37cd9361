//! Versions of programs, and which have holes that are known. Pure.

use std::fmt;

/// Three numbers and whether it is a release candidate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Version {
    major: u32,
    minor: u32,
    patch: u32,
    /// The number of a candidate; a release comes after all of its candidates.
    candidate: u32,
}

impl Version {
    const fn release(major: u32, minor: u32, patch: u32) -> Version {
        Version {
            major,
            minor,
            patch,
            candidate: u32::MAX,
        }
    }

    /// The first word of a text that is a version, such as `1.1.5+ds1` or `v1.7.0-rc.2`.
    pub(super) fn find(text: &str) -> Option<Version> {
        text.split(|c: char| c.is_whitespace() || c == ',')
            .find_map(Version::parse)
    }

    fn parse(word: &str) -> Option<Version> {
        let word = word.strip_prefix('v').unwrap_or(word);
        let word = word.split(['+', '~']).next()?;
        let (numbers, rest) = word.split_once('-').unwrap_or((word, ""));
        let mut numbers = numbers.split('.').map(str::parse::<u32>);
        let mut next = || numbers.next()?.ok();
        let (major, minor, patch) = (next()?, next()?, next()?);
        let candidate = rest.strip_prefix("rc").map(|number| {
            let number = number.trim_start_matches('.');
            number.parse().unwrap_or(0)
        });
        Some(Version {
            major,
            minor,
            patch,
            candidate: candidate.unwrap_or(u32::MAX),
        })
    }
}

impl fmt::Display for Version {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.major, self.minor, self.patch)?;
        if self.candidate < u32::MAX {
            write!(f, "-rc.{}", self.candidate)?;
        }
        Ok(())
    }
}

/// Something that was mended, and in which versions.
pub(super) struct Hole {
    /// What it is called.
    pub(super) name: &'static str,
    /// What it lets somebody do.
    pub(super) what: &'static str,
    /// The first whole version of each line of versions that has it no more; lines older than the first are open, newer than the last
    /// are not.
    mended: &'static [Version],
}

impl Hole {
    /// Whether this version has it.
    pub(super) fn is_open(&self, version: Version) -> bool {
        let line = |other: &Version| (other.major, other.minor);
        let own = self.mended.iter().find(|mended| line(mended) == line(&version));
        match (own, self.mended.last()) {
            (Some(mended), _) => version < *mended,
            (None, Some(last)) => line(&version) < line(last),
            (None, None) => false,
        }
    }

    /// The versions to have.
    pub(super) fn mended(&self) -> String {
        let versions: Vec<String> = self.mended.iter().map(Version::to_string).collect();
        versions.join(", ")
    }
}

/// Those of runc.
pub(super) const RUNC: [Hole; 3] = [
    Hole {
        name: "CVE-2024-21626",
        what: "a container may reach the machine's files through a leaked directory",
        mended: &[Version::release(1, 1, 12)],
    },
    Hole {
        name: "CVE-2025-31133, -52565 and -52881",
        what: "a container may write into the kernel's settings through masked paths and its console",
        mended: &[
            Version::release(1, 2, 8),
            Version::release(1, 3, 3),
            Version {
                candidate: 3,
                ..Version::release(1, 4, 0)
            },
        ],
    },
    Hole {
        name: "CVE-2026-41579",
        what: "an image whose /dev is a link may write to the machine",
        mended: &[Version::release(1, 3, 6), Version::release(1, 4, 3)],
    },
];

/// Those of NVIDIA's container toolkit.
pub(super) const NVIDIA_TOOLKIT: [Hole; 1] = [Hole {
    name: "CVE-2025-23266",
    what: "an image may run its own code as root of the machine",
    mended: &[Version::release(1, 17, 8)],
}];

#[cfg(test)]
mod tests {
    use super::*;

    fn version(text: &str) -> Version {
        Version::find(text).expect("a version")
    }

    #[test]
    fn versions_are_found_in_what_programs_say() {
        assert_eq!(version("runc version 1.1.5+ds1"), Version::release(1, 1, 5));
        assert_eq!(
            version("containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1"),
            Version::release(1, 6, 20)
        );
        assert_eq!(
            version("containerd containerd.io v2.1.0-rc.1 abc").to_string(),
            "2.1.0-rc.1"
        );
        assert_eq!(Version::find("no version 1.2 here"), None);
        assert!(version("1.4.0-rc.2") < version("1.4.0-rc.3") && version("1.4.0-rc.3") < version("1.4.0"));
    }

    #[test]
    fn a_hole_is_open_before_it_was_mended_in_its_line() {
        let open = |hole: &Hole, versions: &[&str]| -> Vec<bool> {
            versions.iter().map(|text| hole.is_open(version(text))).collect()
        };
        assert_eq!(
            open(&RUNC[0], &["1.0.3", "1.1.11", "1.1.12", "1.2.0"]),
            [true, true, false, false]
        );
        let versions = [
            "1.1.15",
            "1.2.7",
            "1.2.8",
            "1.3.2",
            "1.3.3",
            "1.4.0-rc.2",
            "1.4.0-rc.3",
            "1.5.0",
        ];
        assert_eq!(
            open(&RUNC[1], &versions),
            [true, true, false, true, false, true, false, false]
        );
        assert_eq!(
            open(&RUNC[2], &["1.2.8", "1.3.5", "1.3.6", "1.4.2", "1.4.3"]),
            [true, true, false, true, false]
        );
    }
}
