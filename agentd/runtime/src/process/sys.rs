//! The few calls that have no safe wrapper which takes every signal. The only module of this crate with `unsafe` in it.
//!
//! `nix` knows signals as an enumeration without the real-time ones, so its `kill` cannot send them and its `waitpid` fails on a process
//! that one of them ended: an exit would be lost. Here signals are numbers.
#![allow(unsafe_code)]

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
use std::process::{Command, ExitStatus};

use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::libc;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use nix::sys::stat::SFlag;
use nix::unistd::{ForkResult, Pid};
use tokio::io::unix::AsyncFd;

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

/// Waits until this child has ended, and takes it from the kernel.
pub(super) fn reap_one(pid: Pid) -> io::Result<()> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the call to write to.
    while unsafe { libc::waitpid(pid.as_raw(), &raw mut status, 0) } < 0 {
        let error = io::Error::last_os_error();
        if error.kind() != io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
    Ok(())
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

/// A hang-up is nothing to this process.
pub(super) fn ignore_hang_up() {
    // SAFETY: ignoring a signal involves no memory.
    unsafe { libc::signal(libc::SIGHUP, libc::SIG_IGN) };
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
pub(super) fn receive(socket: impl AsFd, message: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let (length, fds) = receive_all(socket, message)?;
    Ok((length, fds.into_iter().next()))
}

/// The most descriptors that come with one message.
const FDS_MAX: usize = 3;

/// Receives one message, and the descriptors that come with it. A length of zero: there is nobody who could send any more.
pub(super) fn receive_all(socket: impl AsFd, message: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; FDS_MAX]);
    let mut parts = [io::IoSliceMut::new(message)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let received = recvmsg::<()>(socket.as_fd().as_raw_fd(), &mut parts, Some(&mut space), flags)?;
    let fds = received.cmsgs()?.find_map(|extra| match extra {
        ControlMessageOwned::ScmRights(fds) => Some(fds),
        _ => None,
    });
    // SAFETY: the kernel has just made them for this process, and nobody else knows of them.
    let own = |fd| unsafe { OwnedFd::from_raw_fd(fd) };
    Ok((received.bytes, fds.unwrap_or_default().into_iter().map(own).collect()))
}

/// Sends one message, and descriptors with it. A peer that is gone is EPIPE, not a signal.
pub(super) fn send(socket: impl AsFd, message: &[u8], fds: &[BorrowedFd<'_>]) -> nix::Result<()> {
    let parts = [io::IoSlice::new(message)];
    let fds: Vec<RawFd> = fds.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights: &[ControlMessage<'_>] = if fds.is_empty() { &[] } else { &rights };
    sendmsg::<()>(socket.as_fd().as_raw_fd(), &parts, rights, MsgFlags::MSG_NOSIGNAL, None).map(drop)
}

/// Holds a process: whatever becomes of its number, this means no other one. Readable when it has ended.
pub(super) fn hold(pid: Pid) -> io::Result<OwnedFd> {
    // SAFETY: no memory is involved.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid.as_raw(), 0) };
    match RawFd::try_from(fd) {
        // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
        Ok(fd) if fd >= 0 => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Sends a signal to a process that is held.
pub(super) fn kill_held(process: &OwnedFd, signal: i32) -> io::Result<()> {
    // SAFETY: no memory is involved: without details the kernel makes them.
    let sent = unsafe {
        let no_details = std::ptr::null::<libc::siginfo_t>();
        libc::syscall(libc::SYS_pidfd_send_signal, process.as_raw_fd(), signal, no_details, 0)
    };
    if sent == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Has the runtime of this task say when a descriptor is ready.
pub(super) fn watch(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: it is owned, so it stays the same and open until it is no longer watched.
    Ok(unsafe { AsyncFd::register(fd) }?)
}

/// Gives up every capability, also those that could be had again: all but the bounding set.
pub(super) fn drop_capabilities() -> io::Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: i32,
    }
    // Version 3: two words for each of effective, permitted and inheritable.
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let none = [0_u32; 6];
    // SAFETY: header and sets are as large as this version says, and outlive the call; the other call takes numbers only.
    let (set, cleared) = unsafe {
        (
            libc::syscall(libc::SYS_capset, &raw const header, none.as_ptr()),
            libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_CLEAR_ALL, 0, 0, 0),
        )
    };
    if set == 0 && cleared == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Empties the bounding set: from then on no program can bring capabilities. Needs one itself.
pub(super) fn drop_bounding_set() -> io::Result<()> {
    for capability in 0..64 {
        // SAFETY: the calls take numbers only.
        let (known, dropped) = unsafe {
            let known = libc::prctl(libc::PR_CAPBSET_READ, capability, 0, 0, 0);
            (known, libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0))
        };
        // The kernel knows no more than these.
        if known < 0 {
            return Ok(());
        }
        if dropped != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

/// Has every descriptor from this one on closed when another program is run.
pub(super) fn close_on_exec_from(first: RawFd) {
    const CLOSE_RANGE_CLOEXEC: libc::c_int = 4;
    // SAFETY: no memory is involved. Kernels before 5.11 cannot; all that is opened here is so anyway.
    let _ = unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_int::MAX, CLOSE_RANGE_CLOEXEC) };
}

/// The other end of a terminal, by no path that somebody could have put something else under.
pub(super) fn terminal_peer(master: &OwnedFd) -> io::Result<OwnedFd> {
    let unlocked: libc::c_int = 0;
    let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
    // SAFETY: the number outlives the call that reads it; the second takes flags only.
    let fd = unsafe {
        if libc::ioctl(master.as_raw_fd(), libc::TIOCSPTLCK, &raw const unlocked) != 0 {
            return Err(io::Error::last_os_error());
        }
        libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags)
    };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made it for this process, and nobody else knows of it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Makes a terminal that of this session, which must have none.
pub(super) fn control_terminal(peer: &OwnedFd) -> io::Result<()> {
    // SAFETY: no memory is involved.
    match unsafe { libc::ioctl(peer.as_raw_fd(), libc::TIOCSCTTY, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Gives a terminal another size.
pub(super) fn resize(terminal: &OwnedFd, columns: u16, rows: u16) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the size outlives the call.
    match unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
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

/// Sets a variable of this process. Only in one that has one thread: the child of [`fork`].
pub(super) fn set_variable(name: &OsStr, value: &OsStr) {
    // SAFETY: no other thread reads the environment, as there is none.
    unsafe { std::env::set_var(name, value) };
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
