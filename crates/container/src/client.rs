//! The agent's side: `driver::Driver` over the shims' sockets.

use std::sync::Arc;

use async_trait::async_trait;
use driver::{Capabilities, Container, Error, Event, Exec, Pod, PodState, Result, Session, Stats};
use tokio::sync::mpsc;

use crate::Config;

pub struct ContainerDriver {
    _config: Config,
}

impl ContainerDriver {
    pub fn new(config: Config) -> Arc<Self> {
        Arc::new(Self { _config: config })
    }
}

#[async_trait]
impl driver::Driver for ContainerDriver {
    fn name(&self) -> &'static str {
        "container"
    }
    fn capabilities(&self) -> Capabilities {
        Capabilities { exec: true, attach: true, port_forward: true, share_process_namespace: true, host_network: true }
    }
    async fn create_pod(&self, _pod: &Pod) -> Result<()> {
        Err(Error::Unsupported("create_pod"))
    }
    async fn create(&self, _uid: &str, _container: &Container) -> Result<()> {
        Err(Error::Unsupported("create"))
    }
    async fn start(&self, _uid: &str, _container: &str, _attempt: u32) -> Result<()> {
        Err(Error::Unsupported("start"))
    }
    async fn signal(&self, _uid: &str, _container: &str, _signal: i32) -> Result<()> {
        Err(Error::Unsupported("signal"))
    }
    async fn remove(&self, _uid: &str, _container: &str, _attempt: u32) -> Result<()> {
        Err(Error::Unsupported("remove"))
    }
    async fn remove_pod(&self, _uid: &str) -> Result<()> {
        Err(Error::Unsupported("remove_pod"))
    }
    async fn recover(&self) -> Result<Vec<PodState>> {
        Ok(Vec::new())
    }
    fn events(&self) -> mpsc::Receiver<Event> {
        mpsc::channel(1).1
    }
    async fn stats(&self, _uid: &str) -> Result<Stats> {
        Err(Error::Unsupported("stats"))
    }
    async fn exec(&self, _uid: &str, _container: &str, _exec: &Exec) -> Result<Session> {
        Err(Error::Unsupported("exec"))
    }
}
