//! The first process of a container that containerd made: a program of its own, because the image has no other that could do it.
//!
//! The kernel ignores signals without a handler for the first process of a pid namespace, and gives it the orphans to reap; commands know
//! nothing of this. So the first process is this one. It is mounted into the container, connects to the shim on the machine, and waits. Told
//! to go, it runs the command as its child; it passes signals on, reaps, and tells the shim how the command really ended. When it exits,
//! the kernel kills whatever else is left; and it exits when its shim does.
//!
//! `init SOCKET VARIABLES DIRECTORY COMMAND [ARGUMENT…]`. VARIABLES is empty, or a file of variables (`NAME=value` and a NUL each) that win over
//! those which it was given. On the socket, from the shim: 0 is go, another byte a signal to pass on. To the shim, once: `S` and a wait
//! status, or `D`, `F`, `V` or `X` and an error number: the directory, the fork, the variables, the execution failed. Numbers are 32 bits,
//! little endian.
//!
//! It has neither a standard library nor an allocator nor a C library: it runs in every image, takes some kilobytes of the container's memory
//! and can be looked through in one sitting. What must never happen here: anything that the command could get hold of. It is not dumpable, so
//! the command cannot look into it although both may run as the same user.
#![no_std]
#![no_main]
// Otherwise loops are compiled to calls of a C library that is not there.
#![no_builtins]

mod variables;

use core::arch::{asm, global_asm};
use core::ptr::null;

#[cfg(target_arch = "x86_64")]
mod number {
    pub(super) const READ: usize = 0;
    pub(super) const WRITE: usize = 1;
    pub(super) const RT_SIGACTION: usize = 13;
    pub(super) const RT_SIGPROCMASK: usize = 14;
    pub(super) const SOCKET: usize = 41;
    pub(super) const CONNECT: usize = 42;
    pub(super) const CLONE: usize = 56;
    pub(super) const EXECVE: usize = 59;
    pub(super) const WAIT4: usize = 61;
    pub(super) const KILL: usize = 62;
    pub(super) const CHDIR: usize = 80;
    pub(super) const PRCTL: usize = 157;
    pub(super) const EXIT_GROUP: usize = 231;
    pub(super) const OPENAT: usize = 257;
    pub(super) const PPOLL: usize = 271;
    pub(super) const SIGNALFD4: usize = 289;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub(super) const CHDIR: usize = 49;
    pub(super) const OPENAT: usize = 56;
    pub(super) const READ: usize = 63;
    pub(super) const WRITE: usize = 64;
    pub(super) const PPOLL: usize = 73;
    pub(super) const SIGNALFD4: usize = 74;
    pub(super) const EXIT_GROUP: usize = 94;
    pub(super) const KILL: usize = 129;
    pub(super) const RT_SIGACTION: usize = 134;
    pub(super) const RT_SIGPROCMASK: usize = 135;
    pub(super) const PRCTL: usize = 167;
    pub(super) const SOCKET: usize = 198;
    pub(super) const CONNECT: usize = 203;
    pub(super) const CLONE: usize = 220;
    pub(super) const EXECVE: usize = 221;
    pub(super) const WAIT4: usize = 260;
}

#[cfg(target_arch = "x86_64")]
global_asm!(
    ".globl _start",
    "_start:",
    "xor ebp, ebp",
    "mov rdi, rsp",
    "and rsp, -16",
    "call {main}",
    "ud2",
    main = sym main,
);

#[cfg(target_arch = "aarch64")]
global_asm!(
    ".globl _start",
    "_start:",
    "mov x29, xzr",
    "mov x30, xzr",
    "mov x0, sp",
    "bl {main}",
    "brk 1",
    main = sym main,
);

/// Makes a system call: what it returns, an error as a negative number.
///
/// # Safety
/// As the call itself: pointers among the arguments must be good for it.
#[cfg(target_arch = "x86_64")]
unsafe fn call(number: usize, args: [usize; 5]) -> isize {
    let returned;
    // SAFETY: the caller's promise; the kernel changes no other registers.
    unsafe {
        asm!(
            "syscall",
            inlateout("rax") number => returned,
            in("rdi") args[0],
            in("rsi") args[1],
            in("rdx") args[2],
            in("r10") args[3],
            in("r8") args[4],
            lateout("rcx") _,
            lateout("r11") _,
            options(nostack),
        );
    }
    returned
}

/// Makes a system call: what it returns, an error as a negative number.
///
/// # Safety
/// As the call itself: pointers among the arguments must be good for it.
#[cfg(target_arch = "aarch64")]
unsafe fn call(number: usize, args: [usize; 5]) -> isize {
    let returned;
    // SAFETY: the caller's promise; the kernel changes no other registers.
    unsafe {
        asm!(
            "svc 0",
            in("x8") number,
            inlateout("x0") args[0] => returned,
            in("x1") args[1],
            in("x2") args[2],
            in("x3") args[3],
            in("x4") args[4],
            options(nostack),
        );
    }
    returned
}

const ENOENT: isize = -2;
const EACCES: isize = -13;
const ENOTDIR: isize = -20;
const ENAMETOOLONG: isize = -36;

const SIGCHLD: u32 = 17;
const SIGNALS: usize = 64;

/// Exit code of a shell that could not run a command.
const CANNOT_RUN: usize = 127;

/// A word of the command line or of the environment, as the kernel gives it: a pointer to its bytes, a NUL behind them.
type Word = *const u8;

/// Where the shim is.
#[derive(Clone, Copy)]
struct Shim(usize);

/// What is to be run: ends of lists are null.
#[derive(Clone, Copy)]
struct Command {
    /// A path, or nothing.
    variables: Word,
    directory: Word,
    argv: *const Word,
    environment: *const Word,
}

fn exit(code: usize) -> ! {
    loop {
        // SAFETY: no memory is involved.
        unsafe { call(number::EXIT_GROUP, [code, 0, 0, 0, 0]) };
    }
}

impl Shim {
    /// Tells it something, as far as it is still there.
    fn tell(self, kind: u8, value: i32) {
        let value = value.to_le_bytes();
        let message = [kind, value[0], value[1], value[2], value[3]];
        // SAFETY: the message outlives the call.
        unsafe { call(number::WRITE, [self.0, message.as_ptr().addr(), message.len(), 0, 0]) };
    }
}

/// The length of a word.
///
/// # Safety
/// It must be one.
unsafe fn length(word: Word) -> usize {
    let mut length = 0;
    // SAFETY: there is a NUL at the end, and this does not go past it.
    while unsafe { *word.add(length) } != 0 {
        length += 1;
    }
    length
}

fn set_mask(mask: u64) {
    const SIG_SETMASK: usize = 2;
    // SAFETY: the mask outlives the call, and is as large as it says.
    unsafe { call(number::RT_SIGPROCMASK, [SIG_SETMASK, (&raw const mask).addr(), 0, 8, 0]) };
}

/// Connects to the shim.
///
/// # Safety
/// `path` must be a word.
unsafe fn connect(path: Word) -> Option<Shim> {
    #[repr(C)]
    struct Address {
        family: u16,
        path: [u8; 108],
    }
    const AF_UNIX: u16 = 1;
    const STREAM_CLOEXEC: usize = 0o2000001;
    let mut address = Address {
        family: AF_UNIX,
        path: [0; 108],
    };
    // SAFETY: it is a word.
    let length = unsafe { length(path) };
    let mut at = 0;
    while at < length {
        // SAFETY: within the word.
        *address.path.get_mut(at)? = unsafe { *path.add(at) };
        at += 1;
    }
    // SAFETY: the address outlives the call.
    let (socket, connected) = unsafe {
        let socket = call(number::SOCKET, [AF_UNIX.into(), STREAM_CLOEXEC, 0, 0, 0]);
        let (at, size) = ((&raw const address).addr(), size_of::<Address>());
        (socket, call(number::CONNECT, [socket.cast_unsigned(), at, size, 0, 0]))
    };
    (socket >= 0 && connected == 0).then_some(Shim(socket.cast_unsigned()))
}

/// Runs the command in this process. Comes back with an error only.
///
/// # Safety
/// The words of the command must be such.
unsafe fn execute(command: Command) -> isize {
    let execve = |path: Word| {
        let (argv, environment) = (command.argv.addr(), command.environment.addr());
        // SAFETY: as for the whole.
        unsafe { call(number::EXECVE, [path.addr(), argv, environment, 0, 0]) }
    };
    // SAFETY: words have an end, and the lists of them, too.
    unsafe {
        let name = *command.argv;
        let size = length(name);
        let mut at = 0;
        while at < size {
            if *name.add(at) == b'/' {
                return execve(name);
            }
            at += 1;
        }
        if size == 0 {
            return ENOENT;
        }
        let Some(mut rest) = path_variable(command.environment) else {
            return ENOENT;
        };
        let mut error = ENOENT;
        loop {
            let mut path = [0_u8; 4096];
            let mut written = 0;
            while *rest != 0 && *rest != b':' {
                if written < path.len() {
                    path[written] = *rest;
                }
                written += 1;
                rest = rest.add(1);
            }
            // No directory is the one that it is in.
            let separator = usize::from(written > 0);
            if written + separator + size < path.len() {
                if separator == 1 {
                    path[written] = b'/';
                }
                let mut at = 0;
                while at < size {
                    path[written + separator + at] = *name.add(at);
                    at += 1;
                }
                match execve(path.as_ptr()) {
                    ENOENT | ENOTDIR => {}
                    EACCES => error = EACCES,
                    other => return other,
                }
            } else {
                error = ENAMETOOLONG;
            }
            if *rest == 0 {
                return error;
            }
            rest = rest.add(1);
        }
    }
}

/// The value of `PATH`.
///
/// # Safety
/// It must be a list of words with a null at its end.
unsafe fn path_variable(mut environment: *const Word) -> Option<Word> {
    // SAFETY: no further than the ends.
    unsafe {
        while !(*environment).is_null() {
            let word = *environment;
            let mut at = 0;
            while at < 5 && *word.add(at) == b"PATH="[at] {
                at += 1;
            }
            if at == 5 {
                return Some(word.add(5));
            }
            environment = environment.add(1);
        }
    }
    None
}

/// What a program expects at its start: no signal blocked, none ignored.
fn default_signals() {
    #[repr(C)]
    struct Action {
        words: [u64; 4],
    }
    let default = Action { words: [0; 4] };
    let mut signal = 1;
    while signal <= SIGNALS {
        // SAFETY: the action outlives the call; for SIGKILL and SIGSTOP it fails, and they have it anyway.
        unsafe { call(number::RT_SIGACTION, [signal, (&raw const default).addr(), 0, 8, 0]) };
        signal += 1;
    }
    set_mask(0);
}

/// Runs the command as a child.
///
/// # Safety
/// The words of the command must be such.
unsafe fn start(command: Command, shim: Shim) -> isize {
    let error = |kind: u8, returned: isize| -> ! {
        shim.tell(kind, -returned as i32);
        exit(CANNOT_RUN)
    };
    // SAFETY: as for the whole; the new process has a copy of everything, as after a fork.
    unsafe {
        let moved = call(number::CHDIR, [command.directory.addr(), 0, 0, 0, 0]);
        if moved < 0 {
            error(b'D', moved);
        }
        match call(number::CLONE, [SIGCHLD as usize, 0, 0, 0, 0]) {
            0 => {
                default_signals();
                match variables::with_variables(command) {
                    Ok(command) => error(b'X', execute(command)),
                    Err(failed) => error(b'V', failed),
                }
            }
            failed if failed < 0 => error(b'F', failed),
            child => child,
        }
    }
}

/// Reaps what has ended; leaves with the command.
fn reap(child: isize, shim: Shim) {
    const WNOHANG: usize = 1;
    loop {
        let mut status = 0_i32;
        // SAFETY: the status outlives the call.
        let pid = unsafe { call(number::WAIT4, [usize::MAX, (&raw mut status).addr(), WNOHANG, 0, 0]) };
        if pid <= 0 {
            return;
        }
        if pid == child {
            shim.tell(b'S', status);
            exit((status >> 8 & 0xff) as usize);
        }
    }
}

fn pass_on(child: isize, signal: u32) {
    if child > 0 {
        // SAFETY: no memory is involved. It may have ended already; then its SIGCHLD is next.
        unsafe { call(number::KILL, [child.cast_unsigned(), signal as usize, 0, 0, 0]) };
    }
}

/// Waits for what is to be done, until the command ends or the shim is gone.
///
/// # Safety
/// The words of the command must be such.
unsafe fn serve(command: Command, shim: Shim, signals: usize) -> ! {
    #[repr(C)]
    struct Poll {
        fd: i32,
        events: i16,
        happened: i16,
    }
    const POLLIN: i16 = 1;
    let mut child = 0;
    loop {
        let poll = |fd: usize| Poll {
            fd: fd as i32,
            events: POLLIN,
            happened: 0,
        };
        let mut polls = [poll(shim.0), poll(signals)];
        // SAFETY: the list outlives the call.
        unsafe {
            call(
                number::PPOLL,
                [(&raw mut polls).addr(), polls.len(), null::<u8>().addr(), 0, 8],
            )
        };
        if polls[1].happened != 0 {
            // A `signalfd_siginfo`: it begins with the number.
            let mut signal = [0_u32; 32];
            // SAFETY: as many bytes as the list has.
            let read = unsafe { call(number::READ, [signals, (&raw mut signal).addr(), 128, 0, 0]) };
            match signal[0] {
                _ if read != 128 => {}
                SIGCHLD => reap(child, shim),
                other => pass_on(child, other),
            }
        }
        if polls[0].happened != 0 {
            let mut byte = 0_u8;
            // SAFETY: one byte has place.
            if unsafe { call(number::READ, [shim.0, (&raw mut byte).addr(), 1, 0, 0]) } != 1 {
                // Nobody holds this container any more.
                exit(CANNOT_RUN);
            }
            match byte {
                // SAFETY: as for the whole.
                0 if child == 0 => child = unsafe { start(command, shim) },
                0 => {}
                signal => pass_on(child, signal.into()),
            }
        }
    }
}

/// # Safety
/// `stack` must be that of a process at its beginning: the number of arguments, the arguments, a null, the environment, a null.
unsafe extern "C" fn main(stack: *const usize) -> ! {
    const PR_SET_DUMPABLE: usize = 4;
    const PR_SET_NAME: usize = 15;
    const NONBLOCK_CLOEXEC: usize = 0o2004000;
    // SAFETY: what the caller promises is how the kernel starts a process.
    unsafe {
        let count = *stack;
        let words = stack.add(1).cast::<Word>();
        if count < 5 {
            exit(2);
        }
        call(number::PRCTL, [PR_SET_DUMPABLE, 0, 0, 0, 0]);
        call(number::PRCTL, [PR_SET_NAME, b"muster-init\0".as_ptr().addr(), 0, 0, 0]);
        let all = u64::MAX;
        set_mask(all);
        let signals = call(
            number::SIGNALFD4,
            [usize::MAX, (&raw const all).addr(), 8, NONBLOCK_CLOEXEC, 0],
        );
        let command = Command {
            variables: *words.add(2),
            directory: *words.add(3),
            argv: words.add(4),
            environment: words.add(count + 1),
        };
        match connect(*words.add(1)) {
            Some(shim) if signals >= 0 => serve(command, shim, signals.cast_unsigned()),
            _ => exit(CANNOT_RUN),
        }
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    exit(CANNOT_RUN)
}

/// What the compiler calls to fill an array.
///
/// # Safety
/// `count` bytes at `place` must be the caller's.
#[unsafe(no_mangle)]
unsafe extern "C" fn memset(place: *mut u8, byte: i32, count: usize) -> *mut u8 {
    let mut at = 0;
    while at < count {
        // SAFETY: within what the caller promises.
        unsafe { *place.add(at) = byte as u8 };
        at += 1;
    }
    place
}

/// Named by the core library, which is built for programs that unwind. This one does not.
#[unsafe(no_mangle)]
extern "C" fn rust_eh_personality() {}
