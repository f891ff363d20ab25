//! The same promises on version 2 of control groups, where this machine mounts both: those that need no controller.

mod machine;

use std::path::Path;

use driver::conformance;
use machine::Machine;

macro_rules! on_version_2 {
    ($($name:ident),+ $(,)?) => {
        $(#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
        async fn $name() {
            if Path::new("/sys/fs/cgroup/unified/cgroup.procs").exists() {
                conformance::$name(&Machine::at("/sys/fs/cgroup/unified")).await;
            }
        })+
    };
}

on_version_2!(
    exits_with_code,
    reports_why_it_never_started,
    is_killed_with_grace,
    survives_the_agent,
    runs_attempt_after_attempt,
    execs_with_exit_code,
    a_dropped_exec_is_killed,
    leaves_nothing_behind,
);
