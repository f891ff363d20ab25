//! What the agent asks for: one function a call.

use std::os::fd::AsFd;

use base::{Clock, SystemClock};
use driver::{Container, Exit, State};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::conn::Role as ConnRole;
use super::log::Log;
use super::running::{Role, Running};
use super::{Shim, Unit};
use crate::identity::Identity;
use crate::limits;
use crate::process::{self, Joined, Program, Scene};
use crate::proto::{self, ExecArgs, Hello, Message, Request, ResizeArgs, Which};
use crate::rootfs::{self, Place};
use crate::sys::{self, Failure, Step};

pub fn now_ms() -> i64 {
    SystemClock.now().as_millisecond()
}

fn args<T: DeserializeOwned>(value: Value) -> Step<T> {
    serde_json::from_value(value).map_err(|e| Failure::invalid(e.to_string()))
}

impl Shim {
    /// Answers a request; `None` where the answer comes later.
    pub fn call(&mut self, conn: u64, request: Request) {
        let id = request.id;
        let answer = match request.call.as_str() {
            "hello" => Ok(Some(Message { hello: Some(self.hello()), ..Message::default() })),
            "create" => args(request.args).and_then(|c| self.create(c)).map(|()| Some(Message::default())),
            "start" => args(request.args).and_then(|w| self.start(conn, id, w)),
            "signal" => args(request.args).and_then(|w| self.signal(&w)).map(|()| Some(Message::default())),
            "remove" => args(request.args).and_then(|w| self.remove(&w)).map(|()| Some(Message::default())),
            "stop" => {
                self.stopping = Some((conn, id));
                Ok(None)
            }
            "exec" => args(request.args).and_then(|e| self.exec(conn, &e)).map(|()| Some(Message::default())),
            "attach" => args(request.args).and_then(|w| self.attach(conn, &w)).map(|()| Some(Message::default())),
            "resize" => args(request.args).map(|size| self.resize(conn, &size)).map(|()| None),
            other => Err(Failure::failed(format!("this pod's shim is older and does not know {other:?}"))),
        };
        let role = match request.call.as_str() {
            "exec" | "attach" | "resize" => None,
            _ => Some(ConnRole::Control),
        };
        let Some(conn) = self.conns.get_mut(&conn) else { return };
        if let (ConnRole::New, Some(role)) = (conn.role, role) {
            conn.role = role;
        }
        match answer {
            Ok(None) => {}
            Ok(Some(message)) => conn.say(&Message { id: Some(id), ..message }),
            Err(failure) => {
                conn.closing = conn.role == ConnRole::New;
                conn.say(&Message { id: Some(id), error: Some(failure), ..Message::default() });
            }
        }
    }

    fn hello(&self) -> Hello {
        Hello {
            version: proto::VERSION,
            pid: std::process::id() as i32,
            pod: self.file.pod.clone(),
            containers: self.units.iter().map(Unit::seen).collect(),
        }
    }

    fn find(&self, which: &Which) -> Step<usize> {
        let fits = |u: &Unit| u.name == which.name && which.attempt.is_none_or(|a| a == u.attempt);
        self.units.iter().rposition(fits).ok_or_else(|| Failure::not_found(format!("container {:?} not found", which.name)))
    }

    fn process_of(&self, unit: &Unit) -> Option<u64> {
        let is = |r: &Running| matches!(&r.role, Role::Main { name, attempt } if *name == unit.name && *attempt == unit.attempt);
        self.running.iter().find(|(_, r)| is(r)).map(|(id, _)| *id)
    }

    fn create(&mut self, spec: Container) -> Step {
        let which = Which { name: spec.name.clone(), attempt: Some(spec.attempt), signal: 0 };
        if self.find(&which).is_ok() {
            return Ok(());
        }
        if spec.name.is_empty() || spec.name.contains('/') {
            return Err(Failure::invalid(format!("{:?} is no name for a container", spec.name)));
        }
        if spec.args.first().is_none_or(|a| a.is_empty()) {
            return Err(Failure::invalid("no command specified"));
        }
        if let Some(bad) = spec.mounts.iter().find(|m| !m.target.is_absolute()) {
            return Err(Failure::invalid(format!("mount target {:?} is not an absolute path", bad.target.display())));
        }
        Identity::of(&spec.security)?;
        rootfs::prepare(&self.root_of(&spec.name, spec.attempt), &spec)?;
        let unit = Unit { name: spec.name.clone(), attempt: spec.attempt, spec: Some(Box::new(spec)), state: State::Created };
        let seen = unit.seen();
        self.units.push(unit);
        self.changed(seen);
        Ok(())
    }

    fn start(&mut self, conn: u64, id: u64, which: Which) -> Step<Option<Message>> {
        let index = self.find(&which)?;
        if let State::Exited(exit) = &self.units[index].state {
            return if exit.error.is_empty() { Ok(Some(Message::default())) } else { Err(Failure::failed(exit.error.clone())) };
        }
        if let Some(process) = self.process_of(&self.units[index]) {
            let running = self.running.get_mut(&process).filter(|r| r.sync.is_some());
            return match running {
                Some(running) => {
                    running.starters.push((conn, id));
                    Ok(None)
                }
                None => Ok(Some(Message::default())),
            };
        }
        match self.spawn(index) {
            Ok(mut running) => {
                running.starters.push((conn, id));
                let process = self.id();
                self.running.insert(process, running);
                Ok(None)
            }
            Err(failure) => {
                let unit = &self.units[index];
                let _ = self.cgroups.container(&self.file.pod.uid, &unit.name, unit.attempt).remove(limits::CGROUP_REMOVE);
                let exit = Exit { code: 128, finished_at_ms: now_ms(), error: failure.text.clone(), ..Exit::default() };
                self.end_unit(index, exit);
                Err(failure)
            }
        }
    }

    fn spawn(&self, index: usize) -> Step<Running> {
        let unit = &self.units[index];
        let spec = unit.spec.as_ref().ok_or_else(|| Failure::failed(format!("container {:?} has ended", unit.name)))?;
        let group = self.cgroups.container(&self.file.pod.uid, &unit.name, unit.attempt);
        group.create()?;
        group.limit(&spec.resources)?;
        if !spec.security.privileged {
            group.guard_devices()?;
        }
        let log = Log::open(&self.file.pod.log_dir, &unit.name, unit.attempt)
            .map_err(|e| Failure::failed(format!("log file of container {:?}: {}", unit.name, sys::reason(&e))))?;
        let program = Program {
            container: spec,
            args: &spec.args,
            hostname: &self.file.pod.hostname,
            identity: Identity::of(&spec.security)?,
            tty: spec.tty,
            stdin: spec.stdin,
        };
        let dir = self.root_of(&unit.name, unit.attempt);
        let place = Place { dir: &dir, shm: &self.shm, group: &group, host: self.host_mounts.as_fd() };
        let pid_namespace = self.pause.as_ref().map(|p| p.namespace.as_fd());
        let scene = Scene::Start { place, own_pids: !self.shares_pids(), pid_namespace };
        let child = process::spawn(&program, &scene, self.own_pids.as_fd())?;
        let role = Role::Main { name: unit.name.clone(), attempt: unit.attempt };
        let mut running = Running::new(role, child, spec.tty, spec.stdin);
        running.log = Some(log);
        running.stdin_once = spec.stdin_once;
        Ok(running)
    }

    fn signal(&mut self, which: &Which) -> Step {
        let unit = &self.units[self.find(which)?];
        let Some(running) = self.process_of(unit).and_then(|p| self.running.get(&p)) else { return Ok(()) };
        if running.status.is_none() {
            // One that has just ended and is not reaped yet still has its pid.
            let _ = sys::kill(running.pid, which.signal);
        }
        if which.signal == libc::SIGKILL && self.shares_pids() {
            self.cgroups.container(&self.file.pod.uid, &unit.name, unit.attempt).kill_now();
        }
        Ok(())
    }

    fn remove(&mut self, which: &Which) -> Step {
        let Ok(index) = self.find(which) else { return Ok(()) };
        let unit = &self.units[index];
        if self.process_of(unit).is_some() {
            return Err(Failure::failed(format!("container {:?} is running", unit.name)));
        }
        self.cgroups.container(&self.file.pod.uid, &unit.name, unit.attempt).remove(limits::CGROUP_REMOVE)?;
        self.units.remove(index);
        self.save();
        Ok(())
    }

    /// The newest attempt of a container, if it runs: its place among the units and its process.
    fn alive(&self, name: &str) -> Step<(usize, u64)> {
        let index = self.find(&Which { name: name.to_string(), ..Which::default() })?;
        let unit = &self.units[index];
        let process = self.process_of(unit).filter(|_| matches!(unit.state, State::Running { .. }));
        process.map(|p| (index, p)).ok_or_else(|| Failure::failed(format!("container {name:?} is not running")))
    }

    fn exec(&mut self, conn: u64, asked: &ExecArgs) -> Step {
        let (index, main) = self.alive(&asked.name)?;
        let process = self.id();
        match self.spawn_exec(index, main, conn, asked) {
            Ok(running) => drop(self.running.insert(process, running)),
            Err(failure) => self.tell_exit(conn, Err(failure.text)),
        }
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.role = ConnRole::Exec(process);
        }
        Ok(())
    }

    fn spawn_exec(&self, index: usize, main: u64, conn: u64, asked: &ExecArgs) -> Step<Running> {
        let unit = &self.units[index];
        let gone = || Failure::failed(format!("container {:?} is not running", unit.name));
        let spec = unit.spec.as_ref().ok_or_else(gone)?;
        let pid = self.running.get(&main).map(|r| r.pid).ok_or_else(gone)?;
        let joined = Joined::of(pid, self.file.pod.host_pid)?;
        let group = self.cgroups.container(&self.file.pod.uid, &unit.name, unit.attempt);
        let program = Program {
            container: spec,
            args: &asked.exec.args,
            hostname: &self.file.pod.hostname,
            identity: Identity::of(&spec.security)?,
            tty: asked.exec.tty,
            stdin: asked.exec.stdin,
        };
        let scene = Scene::Exec { group: &group, joined: &joined };
        let child = process::spawn(&program, &scene, self.own_pids.as_fd())?;
        Ok(Running::new(Role::Exec { conn }, child, asked.exec.tty, asked.exec.stdin))
    }

    fn attach(&mut self, conn: u64, which: &Which) -> Step {
        let (_, process) = self.alive(&which.name)?;
        if let Some(conn) = self.conns.get_mut(&conn) {
            conn.role = ConnRole::Attach { process, fed: false };
        }
        Ok(())
    }

    fn resize(&mut self, conn: u64, size: &ResizeArgs) {
        let process = match self.conns.get(&conn).map(|c| c.role) {
            Some(ConnRole::Exec(p) | ConnRole::Attach { process: p, .. }) => p,
            _ => return,
        };
        if let Some(running) = self.running.get_mut(&process) {
            running.resize(size.width, size.height);
        }
    }
}
