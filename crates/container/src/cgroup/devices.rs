//! Which devices a container may open: lines for version 1's `devices` controller, and for version 2 a BPF program of
//! the same table, encoded here (`linux/bpf.h`; the context is `struct bpf_cgroup_dev_ctx`).

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use crate::sys;

/// `None` is any number.
struct Device {
    kind: char,
    major: Option<u32>,
    minor: Option<u32>,
    access: &'static str,
}

const fn any(kind: char, access: &'static str) -> Device {
    Device { kind, major: None, minor: None, access }
}

const fn char_device(major: u32, minor: Option<u32>) -> Device {
    Device { kind: 'c', major: Some(major), minor, access: "rwm" }
}

/// Runtime-spec's default devices; nodes of all others can be made, but not opened.
const ALLOWED: &[Device] = &[
    any('c', "m"),
    any('b', "m"),
    char_device(1, Some(3)), // null
    char_device(1, Some(5)), // zero
    char_device(1, Some(7)), // full
    char_device(1, Some(8)), // random
    char_device(1, Some(9)), // urandom
    char_device(5, Some(0)), // tty
    char_device(5, Some(1)), // console
    char_device(5, Some(2)), // ptmx
    char_device(136, None),  // pts
];

pub fn rules_v1() -> impl Iterator<Item = String> {
    let number = |n: Option<u32>| n.map_or("*".to_string(), |n| n.to_string());
    ALLOWED.iter().map(move |d| format!("{} {}:{} {}", d.kind, number(d.major), number(d.minor), d.access))
}

const LDX_W: u8 = 0x61;
const MOV32_X: u8 = 0xbc;
const MOV_K: u8 = 0xb7;
const AND32_K: u8 = 0x54;
const RSH32_K: u8 = 0x74;
const JNE32_K: u8 = 0x56;
const EXIT: u8 = 0x95;

/// One instruction: code, registers, jump or field offset, constant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Ins {
    code: u8,
    dst: u8,
    src: u8,
    off: i16,
    imm: i32,
}

impl Ins {
    fn bytes(self) -> [u8; 8] {
        let (off, imm) = (self.off.to_ne_bytes(), self.imm.to_ne_bytes());
        [self.code, self.src << 4 | self.dst, off[0], off[1], imm[0], imm[1], imm[2], imm[3]]
    }
}

fn ins(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Ins {
    Ins { code, dst, src, off, imm }
}

/// r2: device type, r3: access, r4: major, r5: minor, r6: scratch; answers 1 (allow) or 0.
fn program() -> Vec<Ins> {
    let mut out = vec![
        ins(LDX_W, 2, 1, 0, 0),
        ins(MOV32_X, 3, 2, 0, 0),
        ins(AND32_K, 2, 0, 0, 0xffff),
        ins(RSH32_K, 3, 0, 0, 16),
        ins(LDX_W, 4, 1, 4, 0),
        ins(LDX_W, 5, 1, 8, 0),
    ];
    for device in ALLOWED {
        let kind = if device.kind == 'b' { 1 } else { 2 };
        let access = device.access.chars().map(|c| [('m', 1), ('r', 2), ('w', 4)].iter().find(|a| a.0 == c).map_or(0, |a| a.1));
        let refused = 7 & !access.sum::<i32>();
        let mut rule = vec![ins(JNE32_K, 2, 0, 0, kind)];
        if refused != 0 {
            rule.extend([ins(MOV32_X, 6, 3, 0, 0), ins(AND32_K, 6, 0, 0, refused), ins(JNE32_K, 6, 0, 0, 0)]);
        }
        rule.extend(device.major.map(|n| ins(JNE32_K, 4, 0, 0, n as i32)));
        rule.extend(device.minor.map(|n| ins(JNE32_K, 5, 0, 0, n as i32)));
        rule.extend([ins(MOV_K, 0, 0, 0, 1), ins(EXIT, 0, 0, 0, 0)]);
        let len = rule.len();
        for (i, step) in rule.iter_mut().enumerate().filter(|(_, s)| s.code == JNE32_K) {
            step.off = (len - i - 1) as i16;
        }
        out.extend(rule);
    }
    out.extend([ins(MOV_K, 0, 0, 0, 0), ins(EXIT, 0, 0, 0, 0)]);
    out
}

/// `BPF_PROG_LOAD`'s part of `union bpf_attr`; the rest is zero.
#[repr(C)]
#[derive(Default)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
    prog_name: [u8; 16],
}

/// `BPF_PROG_ATTACH`'s part.
#[repr(C)]
#[derive(Default)]
struct Attach {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
}

/// Puts the program on a control group of version 2; it stays as long as the group does.
pub fn attach(group: BorrowedFd<'_>) -> io::Result<()> {
    let code: Vec<u8> = program().into_iter().flat_map(Ins::bytes).collect();
    let load = Load {
        prog_type: 15, // BPF_PROG_TYPE_CGROUP_DEVICE
        insn_cnt: (code.len() / 8) as u32,
        insns: code.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        ..Load::default()
    };
    let fd = sys::bpf(5, &load)?;
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(fd) };
    let attach = Attach {
        target_fd: group.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: 6, // BPF_CGROUP_DEVICE
        attach_flags: 0,
    };
    sys::bpf(8, &attach).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The instructions we emit, interpreted.
    fn ask(kind: u32, access: u32, major: u32, minor: u32) -> i32 {
        let (program, ctx) = (program(), [access << 16 | kind, major, minor]);
        let (mut r, mut pc) = ([0u32; 10], 0usize);
        loop {
            let i = program[pc];
            pc += 1;
            let (d, s) = (i.dst as usize, i.src as usize);
            match i.code {
                LDX_W => r[d] = ctx[i.off as usize / 4],
                MOV32_X => r[d] = r[s],
                MOV_K => r[d] = i.imm as u32,
                AND32_K => r[d] &= i.imm as u32,
                RSH32_K => r[d] >>= i.imm,
                JNE32_K if r[d] != i.imm as u32 => pc += i.off as usize,
                JNE32_K => {}
                EXIT => return r[0] as i32,
                other => panic!("{other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_table_lists() {
        let (block, character, mknod, read, write) = (1, 2, 1, 2, 4);
        assert_eq!(ask(character, read | write, 1, 3), 1, "null");
        assert_eq!(ask(character, read, 136, 77), 1, "a terminal");
        assert_eq!(ask(block, mknod, 8, 0), 1, "a node for a disk");
        assert_eq!(ask(block, read, 8, 0), 0, "reading a disk");
        assert_eq!(ask(block, read | mknod, 8, 0), 0);
        assert_eq!(ask(character, read, 1, 1), 0, "/dev/mem");
        assert_eq!(ask(character, write, 10, 232), 0, "/dev/kvm");
        assert!(rules_v1().any(|r| r == "c 1:3 rwm"));
        assert!(rules_v1().any(|r| r == "b *:* m"));
    }
}
