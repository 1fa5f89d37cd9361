//! Variables out of a file, which win over those that the command was given.
//!
//! They are read in the process that becomes the command, so no other has them.

use core::ptr::null;

use super::{Command, Word, call, length, number};

const E2BIG: isize = -7;

/// The most that a file of variables may hold, and how many variables there may be in all: what the agent keeps to.
const VARIABLES_BYTES: usize = 1 << 20;
const VARIABLES_MAX: usize = 1 << 14;

/// Pages of it exist once they are written to, and only in the process that becomes the command.
static mut TEXT: [u8; VARIABLES_BYTES + 1] = [0; VARIABLES_BYTES + 1];
static mut WORDS: [Word; VARIABLES_MAX] = [null(); VARIABLES_MAX];

/// Whether two variables have one name.
///
/// # Safety
/// They must be words.
unsafe fn same_name(one: Word, other: Word) -> bool {
    let mut at = 0;
    // SAFETY: no further than the first end.
    unsafe {
        while *one.add(at) == *other.add(at) {
            if *one.add(at) == b'=' {
                return true;
            }
            if *one.add(at) == 0 {
                return false;
            }
            at += 1;
        }
    }
    false
}

/// Reads a whole file into [`TEXT`], whose last byte stays NUL: how long it is, or an error.
///
/// # Safety
/// `path` must be a word, and this the only thread.
unsafe fn read_variables(path: Word) -> isize {
    const AT_FDCWD: usize = (-100_isize).cast_unsigned();
    const CLOEXEC: usize = 0o2000000;
    let text = (&raw mut TEXT).cast::<u8>();
    // SAFETY: what is read has place.
    unsafe {
        let file = call(number::OPENAT, [AT_FDCWD, path.addr(), CLOEXEC, 0, 0]);
        if file < 0 {
            return file;
        }
        let mut size = 0;
        loop {
            let place = text.wrapping_add(size).addr();
            match call(number::READ, [file.cast_unsigned(), place, VARIABLES_BYTES - size, 0, 0]) {
                0 if size == VARIABLES_BYTES => return E2BIG,
                0 => return size.cast_signed(),
                failed if failed < 0 => return failed,
                read => size += read.cast_unsigned(),
            }
        }
    }
}

/// The environment with the variables of the file before what it had, without those of the same names.
///
/// # Safety
/// The words of the command must be such, and this the only thread.
pub(super) unsafe fn with_variables(mut command: Command) -> Result<Command, isize> {
    let (text, words) = ((&raw mut TEXT).cast::<u8>(), (&raw mut WORDS).cast::<Word>());
    // SAFETY: as for the whole; nothing goes past the ends, which are looked at.
    unsafe {
        if *command.variables == 0 {
            return Ok(command);
        }
        let size = match read_variables(command.variables) {
            failed if failed < 0 => return Err(failed),
            size => size.cast_unsigned(),
        };
        let (mut at, mut count) = (0, 0);
        while at < size {
            if count + 1 == VARIABLES_MAX {
                return Err(E2BIG);
            }
            *words.add(count) = text.add(at);
            count += 1;
            at += length(text.add(at)) + 1;
        }
        let (given, mut old) = (count, command.environment);
        while !(*old).is_null() {
            let mut one = 0;
            while one < given && !same_name(*words.add(one), *old) {
                one += 1;
            }
            if one == given {
                if count + 1 == VARIABLES_MAX {
                    return Err(E2BIG);
                }
                *words.add(count) = *old;
                count += 1;
            }
            old = old.add(1);
        }
        *words.add(count) = null();
        command.environment = words.cast_const();
    }
    Ok(command)
}
