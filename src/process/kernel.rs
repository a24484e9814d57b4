//! Settings that the process makes in the kernel for itself.

use rustix::io;
#[cfg(target_os = "linux")]
use rustix::process::{DumpableBehavior, set_dumpable_behavior};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Most files open at a time: the connections of strangers to both ports, and some hundreds of our own.
const OPEN_FILES: u64 = 16_384;

/// Prevents core dumps, and other processes of the same user from reading the memory by `/proc` or attaching to it:
/// keys and tokens pass through buffers that cannot be wiped, those of the HTTP client, of TLS and of JSON among them.
///
/// # Errors
/// When the kernel refuses; all settings that it accepts are made.
pub fn keep_memory_private() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    let limited = setrlimit(Resource::Core, none);
    #[cfg(target_os = "linux")]
    set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    limited
}

/// Raises the limit of open files to the connections that strangers may open, as far as the hard limit allows: many
/// container runtimes begin with 1,024, which is for programs that use `select`.
///
/// # Errors
/// When the kernel refuses.
pub fn open_more_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let wanted = limit
        .maximum
        .map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
    if limit.current.is_none_or(|now| now >= wanted) {
        return Ok(());
    }
    let raised = Rlimit {
        current: Some(wanted),
        ..limit
    };
    setrlimit(Resource::Nofile, raised)
}

#[cfg(test)]
mod tests {
    use rustix::process::dumpable_behavior;

    use super::*;

    #[test]
    fn no_core_dump_is_written_and_nobody_attaches() {
        keep_memory_private().unwrap();
        assert_eq!(getrlimit(Resource::Core).maximum, Some(0));
        assert_eq!(dumpable_behavior().unwrap(), DumpableBehavior::NotDumpable);
    }

    #[test]
    fn as_many_files_may_be_open_as_strangers_may_open_connections() {
        let before = getrlimit(Resource::Nofile);
        let low = Rlimit {
            current: Some(1024),
            ..before
        };
        setrlimit(Resource::Nofile, low).unwrap();
        open_more_files().unwrap();
        let wanted = before
            .maximum
            .map_or(OPEN_FILES, |most| most.min(OPEN_FILES));
        assert_eq!(getrlimit(Resource::Nofile).current, Some(wanted));
        setrlimit(Resource::Nofile, before).unwrap();
    }
}
