//! Seccomp filters, as a sandbox is given them: programs of classic BPF.

use libc::{BPF_ABS, BPF_ALU, BPF_AND, BPF_JEQ, BPF_JGE, BPF_JMP, BPF_K, BPF_LD, BPF_RET, BPF_W, c_long};

/// The system calls that a default container's profile doesn't have (moby's `seccomp/default.json` of June 2026, for a process
/// without capabilities on a kernel newer than 4.8): all others up to [`NEWEST`] are allowed.
#[rustfmt::skip]
const DENIED: &[c_long] = &[
    libc::SYS_syslog, libc::SYS_vhangup, libc::SYS_pivot_root, libc::SYS_chroot, libc::SYS_acct, libc::SYS_settimeofday,
    libc::SYS_mount, libc::SYS_umount2, libc::SYS_swapon, libc::SYS_swapoff, libc::SYS_reboot, libc::SYS_sethostname,
    libc::SYS_setdomainname, libc::SYS_init_module, libc::SYS_delete_module, libc::SYS_quotactl, libc::SYS_nfsservctl,
    libc::SYS_lookup_dcookie, libc::SYS_clock_settime, libc::SYS_mbind, libc::SYS_set_mempolicy, libc::SYS_get_mempolicy,
    libc::SYS_kexec_load, libc::SYS_add_key, libc::SYS_request_key, libc::SYS_keyctl, libc::SYS_migrate_pages,
    libc::SYS_unshare, libc::SYS_move_pages, libc::SYS_perf_event_open, libc::SYS_fanotify_init,
    libc::SYS_open_by_handle_at, libc::SYS_setns, libc::SYS_kcmp, libc::SYS_finit_module, libc::SYS_kexec_file_load,
    libc::SYS_bpf, libc::SYS_userfaultfd, libc::SYS_io_uring_setup, libc::SYS_io_uring_enter, libc::SYS_io_uring_register,
    libc::SYS_open_tree, libc::SYS_move_mount, libc::SYS_fsopen, libc::SYS_fsconfig, libc::SYS_fsmount, libc::SYS_fspick,
    libc::SYS_pidfd_getfd, libc::SYS_process_madvise, libc::SYS_mount_setattr, libc::SYS_quotactl_fd,
    libc::SYS_set_mempolicy_home_node,
];
/// Those of them that only x86-64 has (but three that no kernel has had since 2.6).
#[cfg(target_arch = "x86_64")]
#[rustfmt::skip]
const DENIED_HERE: &[c_long] = &[
    libc::SYS_uselib, libc::SYS_ustat, libc::SYS_sysfs, libc::SYS__sysctl, libc::SYS_iopl, libc::SYS_ioperm,
    libc::SYS_getpmsg, libc::SYS_putpmsg, libc::SYS_afs_syscall, libc::SYS_tuxcall, libc::SYS_security, libc::SYS_vserver,
];
#[cfg(not(target_arch = "x86_64"))]
const DENIED_HERE: &[c_long] = &[];
/// The newest system call that the profile knows, `removexattrat`. What is newer isn't there, as far as a container can tell.
const NEWEST: u32 = 466;

#[cfg(target_arch = "x86_64")]
const ARCHITECTURE: u32 = 0xc000_003e;
#[cfg(target_arch = "aarch64")]
const ARCHITECTURE: u32 = 0xc000_00b7;

/// Where `struct seccomp_data` has what.
const NUMBER: u32 = 0;
const ARCH: u32 = 4;
const fn argument(index: u32) -> u32 {
    16 + 8 * index // its lower half, on a little-endian machine
}

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const fn refuse(errno: i32) -> u32 {
    libc::SECCOMP_RET_ERRNO | errno as u32
}

/// What `clone` may not make: namespaces.
const NAMESPACES: u32 = 0x7e02_0000;

/// What a process in a container of Docker's may call.
pub(crate) fn of_a_container() -> Vec<u8> {
    let mut filter = Filter::begin();
    for call in DENIED.iter().chain(DENIED_HERE) {
        filter.decide(*call, refuse(libc::EPERM));
    }
    // glibc and others take `clone` then, whose flags a filter can see.
    filter.decide(libc::SYS_clone3, refuse(libc::ENOSYS));
    filter.decide_where(
        libc::SYS_clone,
        &[
            load(argument(0)),
            statement(BPF_ALU | BPF_AND | BPF_K, NAMESPACES),
            jump(BPF_JEQ, 0, 1, 0),
            statement(BPF_RET | BPF_K, refuse(libc::EPERM)),
            statement(BPF_RET | BPF_K, ALLOW),
        ],
    );
    filter.decide_where(
        libc::SYS_socket,
        &[
            load(argument(0)),
            jump(BPF_JEQ, libc::AF_ALG as u32, 1, 0),
            jump(BPF_JEQ, libc::AF_VSOCK as u32, 0, 1),
            statement(BPF_RET | BPF_K, refuse(libc::EPERM)),
            statement(BPF_RET | BPF_K, ALLOW),
        ],
    );
    filter.end()
}

/// Lets everything happen but a change of a socket's buffers: they stay as small as the system makes them.
pub(crate) fn without_larger_buffers() -> Vec<u8> {
    let mut filter = Filter::begin();
    let options = [libc::SO_RCVBUF, libc::SO_SNDBUF, libc::SO_RCVBUFFORCE, libc::SO_SNDBUFFORCE];
    let mut rule = vec![load(argument(1)), jump(BPF_JEQ, libc::SOL_SOCKET as u32, 0, 6), load(argument(2))];
    for (option, behind) in options.iter().zip([3, 2, 1, 0]) {
        rule.push(jump(BPF_JEQ, *option as u32, behind, if behind == 0 { 1 } else { 0 }));
    }
    rule.push(statement(BPF_RET | BPF_K, refuse(libc::EPERM)));
    rule.push(statement(BPF_RET | BPF_K, ALLOW));
    filter.decide_where(libc::SYS_setsockopt, &rule);
    filter.end()
}

/// A filter that is being written. The number of the call is at hand between its rules.
struct Filter(Vec<[u8; 8]>);

impl Filter {
    fn begin() -> Self {
        Self(vec![
            load(ARCH),
            jump(BPF_JEQ, ARCHITECTURE, 1, 0),
            statement(BPF_RET | BPF_K, libc::SECCOMP_RET_KILL_PROCESS),
            load(NUMBER),
            // Newer ones, and those of the x32 ABI, whose numbers are higher than all.
            jump(BPF_JGE, NEWEST + 1, 0, 1),
            statement(BPF_RET | BPF_K, refuse(libc::ENOSYS)),
        ])
    }

    fn decide(&mut self, call: c_long, answer: u32) {
        self.0.extend([jump(BPF_JEQ, call as u32, 0, 1), statement(BPF_RET | BPF_K, answer)]);
    }

    /// `rule` decides on that call in any case.
    fn decide_where(&mut self, call: c_long, rule: &[[u8; 8]]) {
        self.0.push(jump(BPF_JEQ, call as u32, 0, u8::try_from(rule.len()).unwrap()));
        self.0.extend(rule);
    }

    fn end(mut self) -> Vec<u8> {
        self.0.push(statement(BPF_RET | BPF_K, ALLOW));
        self.0.concat()
    }
}

fn load(at: u32) -> [u8; 8] {
    statement(BPF_LD | BPF_W | BPF_ABS, at)
}

fn statement(code: u32, value: u32) -> [u8; 8] {
    instruction(code, 0, 0, value)
}

/// Compares what is at hand with a value, and skips so many instructions when it is so, or isn't.
fn jump(comparison: u32, value: u32, if_so: u8, if_not: u8) -> [u8; 8] {
    instruction(BPF_JMP | comparison | BPF_K, if_so, if_not, value)
}

/// A `struct sock_filter`.
fn instruction(code: u32, if_so: u8, if_not: u8, value: u32) -> [u8; 8] {
    let (code, value) = (u16::try_from(code).unwrap().to_ne_bytes(), value.to_ne_bytes());
    [code[0], code[1], if_so, if_not, value[0], value[1], value[2], value[3]]
}
