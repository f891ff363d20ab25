//! The shim's one loop: what may be read or written now, what has ended, what is told to whom.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use driver::{ContainerState, Exit, State};
use rustix::event::{PollFd, PollFlags, Timespec};

use super::calls::now_ms;
use super::conn::{Conn, Role as ConnRole};
use super::running::{Role, Running};
use super::{Shim, Unit};
use crate::limits;
use crate::process::{Child, Report};
use crate::proto::{self, Ended, Message, Request};
use crate::sys;

#[derive(Debug, Clone, Copy)]
enum Source {
    Listener,
    Signals,
    Conn(u64),
    Sync(u64),
    Out(u64, usize),
    In(u64),
}

/// What is waited for in one round.
#[derive(Default)]
struct Interest<'a> {
    sources: Vec<Source>,
    fds: Vec<PollFd<'a>>,
}

impl<'a> Interest<'a> {
    fn add(&mut self, source: Source, fd: BorrowedFd<'a>, events: PollFlags) {
        self.sources.push(source);
        self.fds.push(PollFd::from_borrowed_fd(fd, events));
    }
}

/// How often an ending pod is looked at.
const STOP_STEP: Duration = Duration::from_millis(3);

impl Shim {
    pub fn run(&mut self, listener: &UnixListener, signals: &OwnedFd) {
        let mut buffer = vec![0u8; limits::CHUNK];
        let mut killed_since: Option<Instant> = None;
        loop {
            for (source, events) in self.wait(listener, signals) {
                self.handle(source, events, listener, signals, &mut buffer);
            }
            self.settle();
            if self.stopping.is_some() {
                let since = *killed_since.get_or_insert_with(Instant::now);
                if self.stop_step(since) {
                    return;
                }
            } else if self.leave_by.is_some() && self.leave_step() {
                return;
            }
        }
    }

    fn wait(&self, listener: &UnixListener, signals: &OwnedFd) -> Vec<(Source, PollFlags)> {
        let mut interest = Interest::default();
        interest.add(Source::Listener, listener.as_fd(), PollFlags::IN);
        interest.add(Source::Signals, signals.as_fd(), PollFlags::IN);
        for (id, conn) in &self.conns {
            let process = match conn.role {
                ConnRole::Exec(p) | ConnRole::Attach { process: p, .. } => self.running.get(&p),
                _ => None,
            };
            let read = if process.is_some_and(Running::is_fed_up) { PollFlags::empty() } else { PollFlags::IN };
            let write = if conn.waiting() > 0 { PollFlags::OUT } else { PollFlags::empty() };
            interest.add(Source::Conn(*id), conn.stream.as_fd(), read | write);
        }
        for (id, running) in &self.running {
            if let Some(sync) = &running.sync {
                interest.add(Source::Sync(*id), sync.as_fd(), PollFlags::IN);
            }
            let outs = running.out.iter().enumerate().filter(|_| !self.is_blocked(*id, running));
            for (n, fd) in outs.filter_map(|(n, out)| Some((n, out.as_ref()?))) {
                interest.add(Source::Out(*id, n), fd.as_fd(), PollFlags::IN);
            }
            if let Some(input) = running.input.as_ref().filter(|_| !running.unfed.is_empty()) {
                interest.add(Source::In(*id), input.as_fd(), PollFlags::OUT);
            }
        }
        let Interest { sources, mut fds } = interest;
        let timeout = self.timeout().map(|d| Timespec { tv_sec: d.as_secs() as i64, tv_nsec: i64::from(d.subsec_nanos()) });
        if rustix::event::poll(&mut fds, timeout.as_ref()).is_err() {
            return Vec::new();
        }
        let ready = fds.iter().map(PollFd::revents).zip(sources).filter(|(events, _)| !events.is_empty());
        ready.map(|(events, source)| (source, events)).collect()
    }

    /// Someone who reads a process's output has too much of it already.
    fn is_blocked(&self, id: u64, running: &Running) -> bool {
        match running.role {
            Role::Exec { conn } => self.conns.get(&conn).is_some_and(Conn::is_full),
            Role::Main { .. } => self.taps(id).any(|c| self.conns.get(&c).is_some_and(Conn::is_full)),
        }
    }

    fn taps(&self, process: u64) -> impl Iterator<Item = u64> + '_ {
        let is = move |c: &Conn| matches!(c.role, ConnRole::Attach { process: p, .. } if p == process);
        self.conns.iter().filter(move |(_, c)| is(c)).map(|(id, _)| *id)
    }

    fn timeout(&self) -> Option<Duration> {
        let drains = self.running.values().filter_map(|r| r.drain_until);
        let attached = self.conns.values().filter(|c| matches!(c.role, ConnRole::Attach { .. }));
        let stalls = attached.filter_map(|c| c.stalled.map(|s| s + limits::ATTACH_STALL));
        let next =
            drains.chain(stalls).chain(self.leave_by).min().map(|t| t.saturating_duration_since(Instant::now()) + Duration::from_millis(1));
        if self.stopping.is_some() { Some(STOP_STEP) } else { next }
    }

    fn handle(&mut self, source: Source, events: PollFlags, listener: &UnixListener, signals: &OwnedFd, buffer: &mut [u8]) {
        match source {
            Source::Listener => self.accept(listener),
            Source::Signals => {
                while let Some(signal) = sys::next_signal(signals) {
                    if signal != libc::SIGCHLD {
                        self.leave();
                    }
                }
                self.reap();
            }
            Source::Conn(id) => self.converse(id, events, buffer),
            Source::Sync(id) => self.progress(id),
            Source::Out(id, n) => self.output(id, n, buffer),
            Source::In(id) => self.running.get_mut(&id).into_iter().for_each(Running::pump),
        }
    }

    fn accept(&mut self, listener: &UnixListener) {
        while let Ok((stream, _)) = listener.accept() {
            if self.conns.len() < limits::CONNECTIONS_MAX && stream.set_nonblocking(true).is_ok() {
                let id = self.id();
                self.conns.insert(id, Conn::new(stream));
            }
        }
    }

    /// The machine goes down: containers are asked to end, and the shim ends with the last of them.
    fn leave(&mut self) {
        self.leave_by.get_or_insert_with(|| Instant::now() + limits::LEAVE);
        for running in self.running.values().filter(|r| r.status.is_none()) {
            let _ = sys::kill(running.pid, libc::SIGTERM);
        }
    }

    /// Kills who does not go by himself; true when all are gone.
    fn leave_step(&mut self) -> bool {
        let now = Instant::now();
        if self.leave_by.is_some_and(|by| now >= by) {
            self.leave_by = Some(now + limits::KILL);
            self.cgroups.pod(&self.file.pod.uid).kill_now();
            for running in self.running.values().filter(|r| r.status.is_none()) {
                let _ = sys::kill(running.pid, libc::SIGKILL);
            }
        }
        self.running.is_empty()
    }

    fn reap(&mut self) {
        while let Some((pid, status)) = sys::reap() {
            if let Some(running) = self.running.values_mut().find(|r| r.pid == pid && r.status.is_none()) {
                running.status = Some(status);
            }
        }
    }

    fn converse(&mut self, id: u64, events: PollFlags, buffer: &mut [u8]) {
        let Some(conn) = self.conns.get_mut(&id) else { return };
        if events.contains(PollFlags::OUT) {
            conn.flush();
        }
        if !events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) {
            return;
        }
        for (channel, payload) in conn.receive(buffer) {
            match channel {
                proto::JSON => match serde_json::from_slice::<Request>(&payload) {
                    Ok(request) => self.call(id, request),
                    Err(_) => self.conns.get_mut(&id).into_iter().for_each(|c| c.dead = true),
                },
                proto::STDIN => self.feed(id, Some(&payload)),
                proto::CLOSE_STDIN => self.feed(id, None),
                _ => {}
            }
        }
    }

    /// Input of a session; `None` is its end. A container's own input ends only where `stdinOnce` says so.
    fn feed(&mut self, conn: u64, data: Option<&[u8]>) {
        let Some(conn) = self.conns.get_mut(&conn) else { return };
        let (process, attached) = match &mut conn.role {
            ConnRole::Exec(p) => (*p, false),
            ConnRole::Attach { process, fed } => {
                *fed = true;
                (*process, true)
            }
            _ => return,
        };
        let Some(running) = self.running.get_mut(&process) else { return };
        match data {
            Some(data) => running.feed(data),
            None if !attached || running.stdin_once => {
                running.close_input = true;
                running.pump();
            }
            None => {}
        }
    }

    /// A child says how far it is.
    fn progress(&mut self, id: u64) {
        loop {
            let Some(running) = self.running.get_mut(&id) else { return };
            let Some(sync) = &running.sync else { return };
            match Child::report(sync) {
                Report::Later => return,
                Report::Terminal(master) => running.terminal(master),
                Report::Ready => running.ready = true,
                Report::Failed(failure) => running.failure = Some(failure),
                Report::End => {
                    running.sync = None;
                    if running.failure.is_none() && running.ready {
                        running.pump();
                        running.started_at_ms = now_ms();
                        self.began(id);
                    }
                }
            }
        }
    }

    fn began(&mut self, id: u64) {
        let Some(running) = self.running.get_mut(&id) else { return };
        let Role::Main { name, attempt } = running.role.clone() else { return };
        let (pid, started_at_ms, starters) = (running.pid, running.started_at_ms, std::mem::take(&mut running.starters));
        if let Some(unit) = self.units.iter_mut().find(|u| u.name == name && u.attempt == attempt) {
            unit.state = State::Running { pid, started_at_ms };
            let seen = unit.seen();
            self.changed(seen);
        }
        for (conn, call) in starters {
            self.reply(conn, Message { id: Some(call), ..Message::default() });
        }
    }

    fn reply(&mut self, conn: u64, message: Message) {
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.say(&message);
        }
    }

    /// Saves and tells every agent that listens.
    pub fn changed(&mut self, seen: ContainerState) {
        self.save();
        let frame = proto::json_frame(&Message { event: Some(seen), ..Message::default() });
        for conn in self.conns.values_mut().filter(|c| c.role == ConnRole::Control) {
            conn.send(&frame);
        }
    }

    fn output(&mut self, id: u64, n: usize, buffer: &mut [u8]) {
        let Some(running) = self.running.get_mut(&id) else { return };
        let Some(fd) = &running.out[n] else { return };
        let count = match rustix::io::read(fd, &mut *buffer) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            // A terminal whose last user is gone says EIO.
            Err(_) | Ok(0) => {
                running.out[n] = None;
                running.log.iter_mut().for_each(|l| l.close(n));
                return;
            }
            Ok(count) => count,
        };
        if let Some(log) = &mut running.log {
            log.take(n, &buffer[..count]);
        }
        let readers: Vec<u64> = match running.role {
            Role::Exec { conn } => vec![conn],
            Role::Main { .. } => self.taps(id).collect(),
        };
        if readers.is_empty() {
            return;
        }
        let frame = proto::frame(if n == 0 { proto::STDOUT } else { proto::STDERR }, &buffer[..count]);
        for reader in readers {
            self.conns.get_mut(&reader).into_iter().for_each(|c| c.send(&frame));
        }
    }

    /// After every round: hangs up on who is gone, ends what has ended.
    fn settle(&mut self) {
        let now = Instant::now();
        for conn in self.conns.values_mut().filter(|c| matches!(c.role, ConnRole::Attach { .. })) {
            conn.dead |= conn.stalled.is_some_and(|s| now > s + limits::ATTACH_STALL);
        }
        let dead: Vec<u64> = self.conns.iter().filter(|(_, c)| c.dead).map(|(id, _)| *id).collect();
        for id in dead {
            self.hang_up(id);
        }
        let ended: Vec<u64> = self.running.iter().filter(|(_, r)| r.status.is_some()).map(|(id, _)| *id).collect();
        for id in ended {
            self.wind_up(id, now);
        }
    }

    fn hang_up(&mut self, id: u64) {
        let Some(conn) = self.conns.remove(&id) else { return };
        match conn.role {
            ConnRole::Exec(process) => {
                if let Some(running) = self.running.get(&process).filter(|r| r.status.is_none()) {
                    // It leads its session: what it started and did not detach goes too.
                    let _ = sys::kill(-running.pid, libc::SIGKILL);
                    let _ = sys::kill(running.pid, libc::SIGKILL);
                }
            }
            ConnRole::Attach { process, fed: true } => {
                if let Some(running) = self.running.get_mut(&process).filter(|r| r.stdin_once) {
                    running.close_input = true;
                    running.pump();
                }
            }
            _ => {}
        }
    }

    /// A process has ended: the rest of its output, then the word about it.
    fn wind_up(&mut self, id: u64, now: Instant) {
        // Whoever shares a process namespace does not lose its children with its first process.
        let Some(running) = self.running.get(&id) else { return };
        let shares = self.shares_pids();
        if let Role::Main { name, attempt } = &running.role
            && shares
            && running.drain_until.is_none()
        {
            self.cgroups.container(&self.file.pod.uid, name, *attempt).kill_now();
        }
        let blocked = self.is_blocked(id, running);
        let Some(running) = self.running.get_mut(&id) else { return };
        if running.sync.is_some() {
            return;
        }
        let until = *running.drain_until.get_or_insert(now + limits::DRAIN);
        if running.out.iter().any(Option::is_some) && (now < until || blocked) {
            if blocked {
                running.drain_until = Some(now + limits::DRAIN);
            }
            return;
        }
        let Some(mut running) = self.running.remove(&id) else { return };
        if let Some(log) = &mut running.log {
            (0..2).for_each(|n| log.close(n));
        }
        match running.role.clone() {
            Role::Exec { conn } => {
                let result = match running.failure.take() {
                    Some(failure) => Err(failure.text),
                    None => Ok(running.code().0),
                };
                self.tell_exit(conn, result);
            }
            Role::Main { name, attempt } => self.end_main(running, &name, attempt),
        }
        let taps: Vec<u64> = self.taps(id).collect();
        for conn in taps {
            self.tell_exit(conn, Ok(0));
        }
    }

    /// The last word of a session.
    pub fn tell_exit(&mut self, conn: u64, result: Result<i32, String>) {
        let exit = match result {
            Ok(code) => Ended { code, error: None },
            Err(text) => Ended { code: 0, error: Some(text) },
        };
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.closing = true;
            conn.say(&Message { exit: Some(exit), ..Message::default() });
        }
    }

    fn end_main(&mut self, running: Running, name: &str, attempt: u32) {
        let group = self.cgroups.container(&self.file.pod.uid, name, attempt);
        group.kill(limits::KILL);
        let (code, signal) = running.code();
        let oom_killed = code != 0 && group.oom_kills() > 0;
        // Whoever is still in its way is gone by `remove`.
        let _ = group.remove(STOP_STEP * 10);
        let failure = match (&running.failure, running.ready) {
            (Some(failure), _) => Some(failure.clone()),
            (None, false) => Some(sys::Failure::failed(format!("container {name:?} was killed before it had started (exit code {code})"))),
            (None, true) => None,
        };
        let exit = match &failure {
            Some(failure) => Exit { code: 128, oom_killed, finished_at_ms: now_ms(), error: failure.text.clone(), ..Exit::default() },
            None => Exit { code, signal, oom_killed, started_at_ms: running.started_at_ms, finished_at_ms: now_ms(), error: String::new() },
        };
        if let Some(index) = self.units.iter().position(|u| u.name == name && u.attempt == attempt) {
            self.end_unit(index, exit);
        }
        for (conn, call) in running.starters {
            self.reply(conn, Message { id: Some(call), error: failure.clone(), ..Message::default() });
        }
    }

    pub fn end_unit(&mut self, index: usize, exit: Exit) {
        let unit = &mut self.units[index];
        unit.state = State::Exited(exit);
        unit.spec = None;
        let seen = Unit::seen(unit);
        self.changed(seen);
    }

    /// Kills what is left; true when nothing is, and whoever asked has been told.
    fn stop_step(&mut self, since: Instant) -> bool {
        let group = self.cgroups.pod(&self.file.pod.uid);
        group.kill_now();
        for running in self.running.values().filter(|r| r.status.is_none()) {
            let _ = sys::kill(running.pid, libc::SIGKILL);
        }
        let gone = self.running.is_empty() && group.procs().is_empty();
        if !gone && since.elapsed() < limits::KILL {
            return false;
        }
        if let Some(pause) = self.pause.take() {
            let _ = sys::kill(pause.pid, libc::SIGKILL);
        }
        let error = group.remove(limits::CGROUP_REMOVE).err();
        let Some((conn, id)) = self.stopping.take() else { return true };
        if let Some(conn) = self.conns.get_mut(&conn) {
            let _ = conn.stream.set_nonblocking(false);
            conn.say(&Message { id: Some(id), error, ..Message::default() });
        }
        true
    }
}
