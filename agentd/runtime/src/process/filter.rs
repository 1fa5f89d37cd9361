//! The seccomp profile as the kernel takes it: compiled once, installed in every container with one call.
//!
//! It promises what the profile says, by the reading of runc and of the library's manual (libcontainer takes mask and value of a masked
//! comparison the other way round, which allows `clone` everything). The calls are sorted into a tree: the kernel runs a new program once
//! for every call there is, to learn which are always allowed, so a list costs every container half a millisecond.
//!
//! Tested by running the program for every call, beside the list; that the program which runs in a container is this one is shown by
//! `tests/runtime`, which reads it back from the kernel.

use std::fs::File;
use std::io::{self, Read as _, Seek as _};

use libseccomp::error::SeccompError;
use libseccomp::{ScmpAction, ScmpArgCompare, ScmpCompareOp, ScmpFilterContext, ScmpSyscall};
use nix::libc;
use nix::sys::memfd::{MFdFlags, memfd_create};
use oci_spec::runtime::{LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompOperator};

use super::sys;
use crate::{Error, spec};

/// How the library arranges calls, see `SCMP_FLTATR_CTL_OPTIMIZE` in seccomp_attr_set(3).
const TREE: u32 = 2;

/// A compiled profile.
#[derive(Clone, Debug)]
pub(super) struct Filter(Vec<libc::sock_filter>);

/// A profile that cannot be compiled.
#[derive(Debug, thiserror::Error)]
pub(super) enum FilterError {
    /// The library does not take it.
    #[error("seccomp profile")]
    Seccomp(#[from] SeccompError),
    /// The program could not be read from the library.
    #[error("seccomp program")]
    Io(#[from] io::Error),
    /// The profile uses what none of ours does.
    #[error("seccomp profile: {0} is not supported")]
    Unsupported(String),
}

/// The seccomp program that every isolated container runs behind, as the kernel takes it (`struct sock_filter`, one after the other): for
/// whoever wants to compare it with what does run.
///
/// # Errors
/// When the profile cannot be compiled here.
pub fn seccomp_program() -> Result<Vec<u8>, Error> {
    let failed = |error: FilterError| Error::System {
        context: "compiling the seccomp profile".to_owned(),
        message: error.to_string(),
    };
    Filter::compile(&spec::seccomp())
        .map(|filter| filter.bytes())
        .map_err(failed)
}

impl Filter {
    /// Compiles a profile for the architecture of this program.
    pub(super) fn compile(profile: &LinuxSeccomp) -> Result<Filter, FilterError> {
        Filter::compile_as(profile, TREE)
    }

    fn compile_as(profile: &LinuxSeccomp, order: u32) -> Result<Filter, FilterError> {
        let unsupported = |what: &str| Err(FilterError::Unsupported(what.to_owned()));
        if profile.architectures().is_some() {
            return unsupported("a list of architectures");
        }
        if profile.flags().iter().flatten().next().is_some() {
            return unsupported("a flag");
        }
        let mut context = ScmpFilterContext::new(action(profile.default_action(), profile.default_errno_ret())?)?;
        // An older library makes a list, which is as good but slower.
        let _ = context.set_ctl_optimize(order);
        for rule in profile.syscalls().iter().flatten() {
            let action = action(rule.action(), rule.errno_ret())?;
            let arguments = rule
                .args()
                .iter()
                .flatten()
                .map(compare)
                .collect::<Result<Vec<_>, _>>()?;
            for name in rule.names() {
                // A name that the library does not know is of a call that this kernel or architecture does not have.
                let Ok(call) = ScmpSyscall::from_name(name) else {
                    continue;
                };
                context.add_rule_conditional(action, call, &arguments)?;
            }
        }
        let mut file = File::from(memfd_create(c"seccomp", MFdFlags::MFD_CLOEXEC).map_err(io::Error::from)?);
        context.export_bpf(&file)?;
        let mut bytes = Vec::new();
        file.rewind()?;
        file.read_to_end(&mut bytes)?;
        Ok(Filter(bytes.chunks_exact(8).map(instruction).collect()))
    }

    /// The program, as the kernel takes it.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let bytes = |one: &libc::sock_filter| {
            let (code, k) = (one.code.to_ne_bytes(), one.k.to_ne_bytes());
            [code[0], code[1], one.jt, one.jf, k[0], k[1], k[2], k[3]]
        };
        self.0.iter().flat_map(bytes).collect()
    }

    /// Has it checked from now on, in this thread and all that it makes.
    pub(super) fn install(&self) -> io::Result<()> {
        sys::install_filter(&self.0)
    }
}

fn action(action: LinuxSeccompAction, errno: Option<u32>) -> Result<ScmpAction, FilterError> {
    match action {
        LinuxSeccompAction::ScmpActAllow => Ok(ScmpAction::Allow),
        LinuxSeccompAction::ScmpActErrno => {
            let errno = errno.map_or(Ok(libc::EPERM), i32::try_from);
            errno
                .map(ScmpAction::Errno)
                .map_err(|_| FilterError::Unsupported("such an errno".to_owned()))
        }
        other => Err(FilterError::Unsupported(format!("the action {other:?}"))),
    }
}

fn compare(argument: &LinuxSeccompArg) -> Result<ScmpArgCompare, FilterError> {
    let index = u32::try_from(argument.index()).map_err(|_| FilterError::Unsupported("such an argument".to_owned()))?;
    let (operator, datum) = match argument.op() {
        LinuxSeccompOperator::ScmpCmpEq => (ScmpCompareOp::Equal, argument.value()),
        LinuxSeccompOperator::ScmpCmpLt => (ScmpCompareOp::Less, argument.value()),
        LinuxSeccompOperator::ScmpCmpMaskedEq => {
            let mask = argument.value();
            (ScmpCompareOp::MaskedEqual(mask), argument.value_two().unwrap_or(0))
        }
        other => return Err(FilterError::Unsupported(format!("the comparison {other:?}"))),
    };
    Ok(ScmpArgCompare::new(index, operator, datum))
}

/// One instruction, see `struct sock_filter`.
fn instruction(bytes: &[u8]) -> libc::sock_filter {
    libc::sock_filter {
        code: u16::from_ne_bytes([bytes[0], bytes[1]]),
        jt: bytes[2],
        jf: bytes[3],
        k: u32::from_ne_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: u32 = 1;
    const ALLOW: u32 = 0x7FFF_0000;
    const ERRNO: u32 = 0x0005_0000;

    /// What the kernel makes of a call, see seccomp(2): number, architecture, instruction pointer, arguments.
    fn run(filter: &Filter, arch: u32, call: u32, arguments: [u64; 6]) -> u32 {
        let mut words = vec![call, arch, 0, 0];
        words.extend(arguments.iter().flat_map(|argument| {
            let bytes = argument.to_le_bytes();
            [0, 4].map(|at| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]))
        }));
        let (mut at, mut a) = (0, 0);
        loop {
            let one = filter.0[at];
            at += 1;
            let jump = |holds: bool| usize::from(if holds { one.jt } else { one.jf });
            match one.code {
                0x20 => a = words[one.k as usize / 4],
                0x54 => a &= one.k,
                0x05 => at += one.k as usize,
                0x15 => at += jump(a == one.k),
                0x25 => at += jump(a > one.k),
                0x35 => at += jump(a >= one.k),
                0x45 => at += jump(a & one.k != 0),
                0x06 => return one.k,
                code => panic!("instruction {code:#x}"),
            }
        }
    }

    #[cfg(target_arch = "x86_64")]
    #[test]
    fn tree_and_list_say_the_same_of_every_call_and_what_the_profile_says() {
        const NATIVE: u32 = 0xC000_003E;
        let profile = crate::spec::seccomp();
        let [tree, list] = [TREE, LIST].map(|order| Filter::compile_as(&profile, order).expect("compiled"));
        let numbers = [
            0,
            1,
            0x11,
            0x7E02_0000,
            0x1000_0011,
            0x0002_0011,
            38,
            37,
            0x0008,
            0xFFFF_FFFF,
            u64::MAX,
        ];
        let calls = (0..600).chain([0x4000_0000, 0x4000_0038, u32::MAX]);
        for call in calls {
            for first in numbers {
                let arguments = [first, 0, 0, 0, 0, 0];
                assert_eq!(
                    run(&tree, NATIVE, call, arguments),
                    run(&list, NATIVE, call, arguments),
                    "call {call} with {first:#x}"
                );
            }
        }
        let said = |call: libc::c_long, first: u64| {
            let call = u32::try_from(call).expect("a number");
            run(&tree, NATIVE, call, [first, 0, 0, 0, 0, 0])
        };
        let eperm = ERRNO | u32::try_from(libc::EPERM).expect("a number");
        let enosys = ERRNO | u32::try_from(libc::ENOSYS).expect("a number");
        assert_eq!([said(libc::SYS_read, 0), said(libc::SYS_clone, 0x11)], [ALLOW; 2]);
        for namespaces in [0x1000_0011, 0x0002_0011, 0x2000_0011, 0x4000_0011, 0x7E02_0011] {
            assert_eq!(said(libc::SYS_clone, namespaces), eperm, "{namespaces:#x}");
        }
        assert_eq!(said(libc::SYS_clone3, 0), enosys);
        assert_eq!(
            [
                said(libc::SYS_mount, 0),
                said(libc::SYS_unshare, 0),
                said(libc::SYS_bpf, 0)
            ],
            [eperm; 3]
        );
        assert_eq!([said(libc::SYS_socket, 2), said(libc::SYS_socket, 38)], [ALLOW, eperm]);
        // Another architecture's numbers mean other calls.
        assert_ne!(run(&tree, 0x4000_0003, 3, [0; 6]), ALLOW);
    }
}
