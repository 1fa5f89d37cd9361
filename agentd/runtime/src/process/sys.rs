//! The few calls that have no safe wrapper which takes every signal. The only module of this crate with `unsafe` in it.
//!
//! `nix` knows signals as an enumeration without the real-time ones, so its `kill` cannot send them and its `waitpid` fails on a process
//! that one of them ended: an exit would be lost. Here signals are numbers.
#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg};
use nix::sys::stat::SFlag;
use nix::unistd::{ForkResult, Pid};

/// Sends a signal, by number.
pub(super) fn kill(pid: Pid, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::kill(pid.as_raw(), signal) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reaps one child that has ended; `None` when none has. ECHILD when there are no children at all.
pub(super) fn reap() -> io::Result<Option<(Pid, ExitStatus)>> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the call to write to.
    match unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) } {
        0 => Ok(None),
        pid if pid > 0 => Ok(Some((Pid::from_raw(pid), ExitStatus::from_raw(status)))),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Blocks every signal of this thread, so that they stay pending until [`wait_for_signal`].
pub(super) fn block_signals() {
    set_mask(true);
}

/// What a program expects at its start: no signal blocked, none ignored (the Rust runtime ignores SIGPIPE; whoever started the agent, SIGHUP
/// perhaps).
pub(super) fn default_signals() {
    for signal in 1..libc::SIGSYS + 1 {
        // SAFETY: setting a default action involves no memory; for SIGKILL and SIGSTOP it fails, and they have it anyway.
        unsafe { libc::signal(signal, libc::SIG_DFL) };
    }
    set_mask(false);
}

/// Has a command started with [`default_signals`].
pub(super) fn with_default_signals(command: &mut Command) {
    // SAFETY: between fork and exec only calls are allowed that are safe in signal handlers; signal and pthread_sigmask are.
    unsafe {
        command.pre_exec(|| {
            default_signals();
            Ok(())
        });
    }
}

fn set_mask(all: bool) {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: sigfillset and sigemptyset initialise the set they are given; the mask call only reads it. None of them fails with these
    // arguments.
    unsafe {
        if all {
            libc::sigfillset(set.as_mut_ptr())
        } else {
            libc::sigemptyset(set.as_mut_ptr())
        };
        libc::pthread_sigmask(libc::SIG_SETMASK, set.as_ptr(), std::ptr::null_mut());
    }
}

/// Waits for any blocked signal.
pub(super) fn wait_for_signal() -> i32 {
    let mut set = std::mem::MaybeUninit::<libc::sigset_t>::uninit();
    let mut signal = 0;
    loop {
        // SAFETY: sigfillset initialises the set; sigwait reads it and writes the number.
        let failed = unsafe {
            libc::sigfillset(set.as_mut_ptr());
            libc::sigwait(set.as_ptr(), &raw mut signal)
        };
        if failed == 0 {
            return signal;
        }
    }
}

/// Has the kernel check every further system call of this thread against the filter. Needs no privilege when new privileges are ruled out.
pub(super) fn install_filter(filter: &[libc::sock_filter]) -> io::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(io::Error::other)?,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: the kernel copies the program, which outlives the call.
    match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &raw const program) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Closes every descriptor from this one on. Only for a program that has opened none of its own yet.
/// Kernels before 5.9 cannot; then what its parent left open stays so.
pub(super) fn close_from(first: RawFd) {
    // SAFETY: no memory is involved; nothing in this program owns what is closed.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_int::MAX, 0) };
}

/// Receives one message, and the descriptor that comes with it. A length of zero: there is nobody who could send any more.
pub(super) fn receive(socket: &OwnedFd, message: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; 1]);
    let mut parts = [io::IoSliceMut::new(message)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let fds = received.cmsgs()?.find_map(|extra| match extra {
        ControlMessageOwned::ScmRights(fds) => fds.first().copied(),
        _ => None,
    });
    // SAFETY: the kernel has just made it for this process, and there is room for one only.
    let fd = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    Ok((received.bytes, fd))
}

/// Descriptors that this process was started with, by their numbers. An error when they are not pipes.
pub(super) fn inherited<const N: usize>(fds: [RawFd; N]) -> io::Result<[OwnedFd; N]> {
    for fd in fds {
        // SAFETY: it is only looked at, and not beyond this block.
        let borrowed = unsafe { BorrowedFd::borrow_raw(fd) };
        let kind = SFlag::from_bits_truncate(nix::sys::stat::fstat(borrowed)?.st_mode) & SFlag::S_IFMT;
        if kind != SFlag::S_IFIFO {
            return Err(io::Error::other(format!("descriptor {fd} is not a pipe")));
        }
    }
    // SAFETY: they are open, and nothing in this process has made them: it is called once, before anything else is opened.
    let owned = fds.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) });
    for fd in &owned {
        fcntl(fd, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC))?;
    }
    Ok(owned)
}

/// Forks.
pub(super) fn fork() -> nix::Result<ForkResult> {
    // SAFETY: the callers are processes with one thread, so the child may do everything that its parent may.
    unsafe { nix::unistd::fork() }
}

/// Ends this process at once, without running anything at exit.
pub(super) fn exit(code: i32) -> ! {
    // SAFETY: does not return, and touches no memory.
    unsafe { libc::_exit(code) }
}
