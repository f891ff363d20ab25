//! System call filters: a policy (call, conditions, action) becomes a BPF program.
//!
//! The program looks the number up by bisection over runs of calls with one verdict: some seven comparisons a call, and
//! cheap for the kernel when it works out which calls it may wave through without running it. Knows nothing of
//! containers; `default` and `oci` make policies.

mod default;
mod oci;
mod table;

use std::collections::BTreeMap;

pub use default::policy as default_policy;
pub use oci::parse as parse_oci;
pub use table::number;

#[cfg(target_arch = "x86_64")]
const AUDIT_ARCH: u32 = 0xC000_003E;
#[cfg(target_arch = "aarch64")]
const AUDIT_ARCH: u32 = 0xC000_00B7;

/// What becomes of a call; the values are the kernel's `SECCOMP_RET_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Action {
    Allow,
    Errno(u16),
    Log,
    Trace(u16),
    Trap,
    KillThread,
    KillProcess,
}

impl Action {
    fn ret(self) -> u32 {
        match self {
            Action::Allow => 0x7fff_0000,
            Action::Errno(n) => 0x0005_0000 | u32::from(n),
            Action::Log => 0x7ffc_0000,
            Action::Trace(n) => 0x7ff0_0000 | u32::from(n),
            Action::Trap => 0x0003_0000,
            Action::KillThread => 0,
            Action::KillProcess => 0x8000_0000,
        }
    }

    fn lets_pass(self) -> bool {
        matches!(self, Action::Allow | Action::Log)
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    Eq,
    Ne,
    Lt,
    Le,
    Gt,
    Ge,
    /// `argument & mask == value`
    Masked {
        mask: u64,
    },
}

/// A condition on one argument, compared as 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cond {
    pub arg: u8,
    pub op: Op,
    pub value: u64,
}

/// All conditions must hold; none is "always".
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule {
    pub when: Vec<Cond>,
    pub action: Action,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    /// The first rule that matches decides.
    pub calls: BTreeMap<u32, Vec<Rule>>,
    pub default: Action,
}

/// A compiled filter, ready for `install`.
pub struct Filter(Vec<libc::sock_filter>);

const LD_W_ABS: u16 = 0x20;
const AND_K: u16 = 0x54;
const JA: u16 = 0x05;
const JEQ_K: u16 = 0x15;
const JGT_K: u16 = 0x25;
const JGE_K: u16 = 0x35;
const RET_K: u16 = 0x06;

/// Offsets in `struct seccomp_data`.
const NR: u32 = 0;
const ARCH: u32 = 4;
const ARGS: u32 = 16;

/// Jump marks inside one rule, patched when its length is known.
const PASS: u8 = 254;
const FAIL: u8 = 255;

fn op(code: u16, k: u32) -> libc::sock_filter {
    libc::sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> libc::sock_filter {
    libc::sock_filter { code, jt, jf, k }
}

impl Policy {
    /// Calls that no table knows get `ENOSYS`, so that programs fall back, unless the policy lets everything pass.
    fn verdict(&self, nr: u32, known: bool) -> Vec<Rule> {
        let last = |action| vec![Rule { when: Vec::new(), action }];
        match self.calls.get(&nr) {
            Some(rules) => {
                let mut rules = rules.clone();
                if let Some(end) = rules.iter().position(|r| r.when.is_empty()) {
                    rules.truncate(end + 1);
                } else {
                    rules.extend(last(self.default));
                }
                rules
            }
            None if known || self.default.lets_pass() => last(self.default),
            None => last(Action::Errno(libc::ENOSYS as u16)),
        }
    }

    /// Runs of numbers with one verdict, from their first number on.
    fn runs(&self) -> Vec<(u32, Vec<Rule>)> {
        let known: BTreeMap<u32, &str> = table::all().collect();
        let mut runs: Vec<(u32, Vec<Rule>)> = Vec::new();
        for nr in 0..=table::NEWEST + 1 {
            let verdict = self.verdict(nr, known.contains_key(&nr));
            if runs.last().is_none_or(|(_, last)| *last != verdict) {
                runs.push((nr, verdict));
            }
        }
        runs
    }

    pub fn compile(&self) -> Filter {
        let mut program = vec![
            op(LD_W_ABS, ARCH),
            jump(JEQ_K, AUDIT_ARCH, 1, 0),
            // Another architecture's calls have other numbers: none of them is known to be harmless.
            op(RET_K, Action::KillProcess.ret()),
            op(LD_W_ABS, NR),
        ];
        program.extend(bisect(&self.runs()));
        Filter(program)
    }
}

fn bisect(runs: &[(u32, Vec<Rule>)]) -> Vec<libc::sock_filter> {
    if let [(_, rules)] = runs {
        return leaf(rules);
    }
    let (low, high) = runs.split_at(runs.len() / 2);
    let (left, right) = (bisect(low), bisect(high));
    let mut out = match u8::try_from(left.len()) {
        Ok(skip) => vec![jump(JGE_K, high[0].0, skip, 0)],
        Err(_) => vec![jump(JGE_K, high[0].0, 0, 1), op(JA, left.len() as u32)],
    };
    out.extend(left);
    out.extend(right);
    out
}

fn leaf(rules: &[Rule]) -> Vec<libc::sock_filter> {
    let mut out = Vec::new();
    for rule in rules {
        let mut block: Vec<_> = Vec::new();
        for cond in &rule.when {
            let mut test = condition(cond);
            let end = test.len();
            for (i, ins) in test.iter_mut().enumerate() {
                let next = (end - i - 1) as u8;
                for mark in [&mut ins.jt, &mut ins.jf] {
                    if *mark == PASS {
                        *mark = next;
                    }
                }
            }
            block.extend(test);
        }
        let end = block.len() + 1;
        for (i, ins) in block.iter_mut().enumerate() {
            for mark in [&mut ins.jt, &mut ins.jf] {
                if *mark == FAIL {
                    *mark = (end - i - 1) as u8;
                }
            }
        }
        out.extend(block);
        out.push(op(RET_K, rule.action.ret()));
    }
    out
}

/// Falls through or jumps to `PASS` when it holds, else jumps to `FAIL`.
fn condition(cond: &Cond) -> Vec<libc::sock_filter> {
    let (low, high) = (ARGS + 8 * u32::from(cond.arg), ARGS + 8 * u32::from(cond.arg) + 4);
    let (v_low, v_high) = (cond.value as u32, (cond.value >> 32) as u32);
    let ordered = |code: u16, yes: u8, no: u8| {
        vec![op(LD_W_ABS, high), jump(JGT_K, v_high, yes, 0), jump(JEQ_K, v_high, 0, no), op(LD_W_ABS, low), jump(code, v_low, yes, no)]
    };
    match cond.op {
        Op::Eq => vec![op(LD_W_ABS, high), jump(JEQ_K, v_high, 0, FAIL), op(LD_W_ABS, low), jump(JEQ_K, v_low, 0, FAIL)],
        Op::Ne => vec![op(LD_W_ABS, high), jump(JEQ_K, v_high, 0, PASS), op(LD_W_ABS, low), jump(JEQ_K, v_low, FAIL, 0)],
        Op::Masked { mask } => vec![
            op(LD_W_ABS, high),
            op(AND_K, (mask >> 32) as u32),
            jump(JEQ_K, v_high, 0, FAIL),
            op(LD_W_ABS, low),
            op(AND_K, mask as u32),
            jump(JEQ_K, v_low, 0, FAIL),
        ],
        Op::Gt => ordered(JGT_K, PASS, FAIL),
        Op::Ge => ordered(JGE_K, PASS, FAIL),
        Op::Lt => ordered(JGE_K, FAIL, PASS),
        Op::Le => ordered(JGT_K, FAIL, PASS),
    }
}

impl Filter {
    /// Puts the filter on this thread. Needs `CAP_SYS_ADMIN` or no-new-privileges.
    pub fn install(&self) -> std::io::Result<()> {
        let prog = libc::sock_fprog { len: self.0.len() as u16, filter: self.0.as_ptr().cast_mut() };
        // SAFETY: `prog` points at `len` instructions that live through the call; the kernel only reads them.
        match unsafe { libc::syscall(libc::SYS_seccomp, libc::SECCOMP_SET_MODE_FILTER, 0, &prog) } {
            0 => Ok(()),
            _ => Err(std::io::Error::last_os_error()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The kernel's interpreter, for the instructions we emit.
    fn run(filter: &Filter, arch: u32, nr: u32, args: [u64; 6]) -> u32 {
        let load = |at: u32| match at {
            NR => nr,
            ARCH => arch,
            _ => {
                let arg = args[((at - ARGS) / 8) as usize];
                if (at - ARGS).is_multiple_of(8) { arg as u32 } else { (arg >> 32) as u32 }
            }
        };
        let (mut a, mut pc, mut steps) = (0u32, 0usize, 0);
        loop {
            let ins = filter.0[pc];
            pc += 1;
            steps += 1;
            assert!(steps < 100, "a long way for call {nr}");
            let branch = |yes: bool| if yes { ins.jt as usize } else { ins.jf as usize };
            match ins.code {
                LD_W_ABS => a = load(ins.k),
                AND_K => a &= ins.k,
                JA => pc += ins.k as usize,
                JEQ_K => pc += branch(a == ins.k),
                JGT_K => pc += branch(a > ins.k),
                JGE_K => pc += branch(a >= ins.k),
                RET_K => return ins.k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn holds(c: &Cond, args: [u64; 6]) -> bool {
        let v = args[c.arg as usize];
        match c.op {
            Op::Eq => v == c.value,
            Op::Ne => v != c.value,
            Op::Lt => v < c.value,
            Op::Le => v <= c.value,
            Op::Gt => v > c.value,
            Op::Ge => v >= c.value,
            Op::Masked { mask } => v & mask == c.value,
        }
    }

    #[test]
    fn programs_decide_as_their_policies_say() {
        let ids = base::Ids::seeded(20261124);
        let pick = |n: u64| ids.next_u64() % n;
        let word = || match pick(4) {
            0 => pick(4),
            1 => pick(4) << 32 | pick(4),
            2 => u64::MAX - pick(3),
            _ => ids.next_u64(),
        };
        let action = || [Action::Allow, Action::Errno(1), Action::Errno(38), Action::Trap, Action::Log][pick(5) as usize];
        for _ in 0..60 {
            let mut calls = BTreeMap::new();
            for _ in 0..pick(200) {
                let rules = (0..=pick(3)).map(|_| Rule {
                    when: (0..pick(4))
                        .map(|_| {
                            let mask = word();
                            let ops = [Op::Eq, Op::Ne, Op::Lt, Op::Le, Op::Gt, Op::Ge, Op::Masked { mask }];
                            let op = ops[pick(7) as usize];
                            let value = if let Op::Masked { mask } = op { word() & mask } else { word() };
                            Cond { arg: pick(6) as u8, op, value }
                        })
                        .collect(),
                    action: action(),
                });
                calls.insert(pick(480) as u32, rules.collect::<Vec<_>>());
            }
            calls.retain(|nr, _| *nr <= table::NEWEST);
            let policy = Policy { calls, default: action() };
            let filter = policy.compile();
            let known: BTreeMap<u32, &str> = table::all().collect();
            for nr in (0..500).chain([0x4000_0001, u32::MAX]) {
                let args = std::array::from_fn(|_| word());
                let matched = policy.calls.get(&nr).and_then(|r| r.iter().find(|r| r.when.iter().all(|c| holds(c, args))));
                let expected = match matched {
                    Some(rule) => rule.action,
                    None if known.contains_key(&nr) || policy.calls.contains_key(&nr) || policy.default.lets_pass() => policy.default,
                    None => Action::Errno(libc::ENOSYS as u16),
                };
                assert_eq!(run(&filter, AUDIT_ARCH, nr, args), expected.ret(), "call {nr} with {args:?}");
            }
        }
    }

    #[test]
    fn the_default_is_what_people_expect() {
        let caps = |names: &[&str]| names.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        let plain = default_policy(&caps(&["CAP_CHOWN", "CAP_SYS_CHROOT"])).compile();
        let admin = default_policy(&caps(&["CAP_SYS_ADMIN"])).compile();
        let ask = |f: &Filter, name: &str, arg0: u64| run(f, AUDIT_ARCH, number(name).unwrap(), [arg0, 0, 0, 0, 0, 0]);
        let eperm = Action::Errno(1).ret();
        for name in ["unshare", "keyctl", "bpf", "mount", "setns", "kexec_load", "init_module", "io_uring_setup", "userfaultfd", "reboot"] {
            assert_eq!(ask(&plain, name, 0), eperm, "{name}");
        }
        for name in ["read", "openat", "execve", "ptrace", "futex", "epoll_pwait", "statx", "landlock_create_ruleset", "chroot"] {
            assert_eq!(ask(&plain, name, 0), Action::Allow.ret(), "{name}");
        }
        assert_eq!(ask(&plain, "clone3", 0), Action::Errno(libc::ENOSYS as u16).ret());
        assert_eq!(ask(&plain, "clone", libc::SIGCHLD as u64), Action::Allow.ret());
        assert_eq!(ask(&plain, "clone", libc::CLONE_NEWUSER as u64), eperm);
        assert_eq!(ask(&plain, "socket", libc::AF_INET as u64), Action::Allow.ret());
        assert_eq!(ask(&plain, "socket", libc::AF_VSOCK as u64), eperm);
        assert_eq!(ask(&plain, "personality", 0x0004_0000), eperm);
        for name in ["unshare", "mount", "setns", "clone3", "bpf"] {
            assert_eq!(ask(&admin, name, 0), Action::Allow.ret(), "{name}");
        }
        assert_eq!(ask(&admin, "keyctl", 0), eperm);
        assert_eq!(run(&plain, AUDIT_ARCH, 9999, [0; 6]), Action::Errno(libc::ENOSYS as u16).ret());
        assert_eq!(run(&plain, 0x4000_0003, 1, [0; 6]), Action::KillProcess.ret());
        assert!(plain.0.len() < 300, "{} instructions", plain.0.len());
    }
}
