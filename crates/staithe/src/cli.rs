//! The command line: what can be typed. What it does lives in `verbs` and `up`.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};

use crate::settings::Given;

#[derive(Parser)]
#[command(name = "staithe", version, about = "A whole production environment for microservices in one binary", max_term_width = 110)]
#[command(after_help = "Examples:
  sudo staithe up --detach                 start the environment on this machine
  staithe apply -f shop.yaml               deploy what a manifest says
  staithe get pods -A -o wide              see what runs where
  staithe rollout undo deployment/orders   go back to the version before

kubectl works too: export KUBECONFIG=/var/lib/staithe/pki/admin.kubeconfig")]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

/// Which environment, as whom, in which namespace.
#[derive(Args, Clone, Default)]
pub struct Target {
    /// The kubeconfig to use [default: $KUBECONFIG, ~/.kube/config, <data-dir>/pki/admin.kubeconfig]
    #[arg(long, value_name = "FILE", global = true, help_heading = "Connection")]
    pub kubeconfig: Option<PathBuf>,
    /// The kubeconfig's context
    #[arg(long, value_name = "NAME", global = true, help_heading = "Connection")]
    pub context: Option<String>,
    /// Where <data-dir> is, to find its kubeconfig
    #[arg(long, env = "STAITHE_DATA_DIR", value_name = "DIR", default_value = crate::settings::DATA_DIR, hide_default_value = true, help_heading = "Connection")]
    pub data_dir: PathBuf,
    /// The namespace [default: the context's]
    #[arg(long, short = 'n', value_name = "NAMESPACE")]
    pub namespace: Option<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    Json,
    Yaml,
    Wide,
    Name,
}

#[derive(Subcommand)]
pub enum Command {
    /// Start the environment on this machine: API, scheduler, node, network, registry, router
    #[command(after_help = "Examples:
  sudo staithe up                                 in the foreground; Ctrl-C stops the control plane, services run on
  sudo staithe up --detach                        in the background, back at the prompt when it is ready
  sudo staithe up --http-port 8080 --https-port 8443
  sudo staithe up --config /etc/staithe.yaml")]
    Up(Up),
    /// Stop the environment and everything it runs on this machine
    #[command(after_help = "Examples:
  sudo staithe down --dry-run     list what would be taken away
  sudo staithe down --purge       remove the data as well")]
    Down(Down),
    /// Make the environment a systemd service that starts at boot
    Install(Install),
    /// Say whether the environment is up and what it runs
    Status(Status),
    /// List objects
    #[command(after_help = "Examples:
  staithe get pods                       staithe get deploy,svc -A
  staithe get pod web-1 -o yaml          staithe get pods -l app=web --watch")]
    Get(Get),
    /// Show one object with its events
    Describe(Describe),
    /// Make what the manifests say true
    #[command(after_help = "Examples:
  staithe apply -f shop.yaml      staithe apply -f manifests/      cat x.yaml | staithe apply -f -")]
    Apply(Apply),
    /// Delete objects by name, label or manifest
    Delete(Delete),
    /// Set the number of instances
    #[command(after_help = "Example:
  staithe scale deployment/orders --replicas 3")]
    Scale(Scale),
    /// Watch, undo, restart, pause or resume the rollout of a deployment
    #[command(after_help = "Examples:
  staithe rollout status deployment/orders      staithe rollout undo deployment/orders --to-revision 2")]
    Rollout(Rollout),
    /// Print the logs of a pod or of all pods of a workload
    #[command(after_help = "Examples:
  staithe logs orders-7d9c-x2z4k -f       staithe logs deployment/orders --tail 20       staithe logs -l app=orders --since 5m")]
    Logs(Logs),
    /// Run a command in a container
    #[command(after_help = "Examples:
  staithe exec orders-7d9c-x2z4k -- ls /      staithe exec -it deployment/orders -- sh")]
    Exec(Exec),
    /// Forward local ports to a pod
    PortForward(PortForward),
    /// Show what happened, newest last
    Events(Events),
    /// Import, list, push and remove images of this machine
    #[command(subcommand)]
    Image(Image),
    /// Print a shell completion script
    #[command(after_help = "Example:
  staithe completion bash > /etc/bash_completion.d/staithe")]
    Completion { shell: clap_complete::Shell },
}

#[derive(Args)]
pub struct Up {
    #[command(flatten)]
    pub given: Given,
    /// A YAML file with the same settings, keys as the flags without dashes in front
    #[arg(long, env = "STAITHE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Run in the background; return when the environment is ready
    #[arg(long, short = 'd')]
    pub detach: bool,
}

#[derive(Args)]
pub struct Down {
    #[command(flatten)]
    pub given: Given,
    #[arg(long, env = "STAITHE_CONFIG", value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Only list what would be removed
    #[arg(long)]
    pub dry_run: bool,
    /// Remove the data directory too: objects, images, volumes, logs
    #[arg(long)]
    pub purge: bool,
}

#[derive(Args)]
pub struct Install {
    #[command(flatten)]
    pub given: Given,
    /// Print the unit instead of installing it
    #[arg(long)]
    pub print: bool,
    /// Take the service away again
    #[arg(long, conflicts_with = "print")]
    pub uninstall: bool,
}

#[derive(Args)]
pub struct Status {
    #[command(flatten)]
    pub target: Target,
}

#[derive(Args)]
pub struct Get {
    /// TYPE, TYPE/NAME or TYPE,TYPE
    pub what: String,
    pub names: Vec<String>,
    #[command(flatten)]
    pub target: Target,
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub selector: String,
    #[arg(long, value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub field_selector: String,
    #[arg(long, short = 'o', value_enum)]
    pub output: Option<Output>,
    /// Go on and show changes
    #[arg(long, short = 'w')]
    pub watch: bool,
    #[arg(long)]
    pub no_headers: bool,
}

#[derive(Args)]
pub struct Describe {
    /// TYPE/NAME or TYPE NAME
    #[arg(required = true, num_args = 1..=2)]
    pub what: Vec<String>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Args)]
pub struct Apply {
    /// A file, a directory or - for standard input; may be repeated
    #[arg(long, short = 'f', required = true, value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    #[command(flatten)]
    pub target: Target,
    /// Check everything on the server, change nothing
    #[arg(long)]
    pub dry_run: bool,
    /// Take fields over from other managers
    #[arg(long)]
    pub force_conflicts: bool,
    /// Wait until every deployment applied is available
    #[arg(long)]
    pub wait: bool,
    #[arg(long, short = 'o', value_enum)]
    pub output: Option<Output>,
}

#[derive(Args)]
pub struct Delete {
    /// TYPE NAME…, or TYPE/NAME…
    pub what: Vec<String>,
    #[arg(long, short = 'f', value_name = "FILE")]
    pub filename: Vec<PathBuf>,
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub selector: String,
    #[command(flatten)]
    pub target: Target,
    /// Seconds to end by itself before it is killed
    #[arg(long, value_name = "SECONDS")]
    pub grace_period: Option<i64>,
    /// Do not wait until the objects are gone
    #[arg(long)]
    pub no_wait: bool,
    #[arg(long)]
    pub ignore_not_found: bool,
}

#[derive(Args)]
pub struct Scale {
    /// TYPE/NAME
    pub what: String,
    #[arg(long, value_name = "N")]
    pub replicas: u32,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Args)]
pub struct Rollout {
    #[arg(value_enum)]
    pub action: RolloutAction,
    /// deployment/NAME
    pub what: String,
    /// With undo: the revision to go back to [default: the one before]
    #[arg(long, value_name = "N")]
    pub to_revision: Option<i64>,
    /// With status: give up after this many seconds
    #[arg(long, value_name = "SECONDS")]
    pub timeout: Option<u64>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum RolloutAction {
    Status,
    History,
    Undo,
    Restart,
    Pause,
    Resume,
}

#[derive(Args)]
pub struct Logs {
    /// POD or TYPE/NAME
    pub what: Option<String>,
    #[arg(long, short = 'l', value_name = "SELECTOR", default_value = "", hide_default_value = true)]
    pub selector: String,
    #[arg(long, short = 'c', value_name = "NAME")]
    pub container: Option<String>,
    #[arg(long)]
    pub all_containers: bool,
    #[arg(long, short = 'f')]
    pub follow: bool,
    /// Of the container's run before this one
    #[arg(long, short = 'p')]
    pub previous: bool,
    #[arg(long)]
    pub timestamps: bool,
    /// The last lines only
    #[arg(long, value_name = "LINES")]
    pub tail: Option<i64>,
    /// Not older than 30s, 5m, 2h
    #[arg(long, value_name = "DURATION")]
    pub since: Option<String>,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Args)]
pub struct Exec {
    /// POD or TYPE/NAME
    pub what: String,
    #[arg(long, short = 'c', value_name = "NAME")]
    pub container: Option<String>,
    /// Pass standard input on
    #[arg(long, short = 'i')]
    pub stdin: bool,
    /// With a terminal
    #[arg(long, short = 't')]
    pub tty: bool,
    #[command(flatten)]
    pub target: Target,
    #[arg(last = true, required = true)]
    pub command: Vec<String>,
}

#[derive(Args)]
pub struct PortForward {
    /// POD or TYPE/NAME
    pub what: String,
    /// LOCAL:REMOTE, or one number for both
    #[arg(required = true)]
    pub ports: Vec<String>,
    #[arg(long, default_value = "127.0.0.1")]
    pub address: std::net::IpAddr,
    #[command(flatten)]
    pub target: Target,
}

#[derive(Args)]
pub struct Events {
    #[command(flatten)]
    pub target: Target,
    #[arg(long, short = 'A')]
    pub all_namespaces: bool,
    /// Only of TYPE/NAME
    #[arg(long = "for", value_name = "TYPE/NAME")]
    pub about: Option<String>,
    #[arg(long, short = 'w')]
    pub watch: bool,
}

#[derive(Subcommand)]
pub enum Image {
    /// Import an OCI layout, a `docker save` archive or a root filesystem tar
    #[command(after_help = "Examples:
  staithe image import nginx.tar                                     the archive says its name
  staithe image import root.tar --name shop/orders:1 --cmd /orders   a plain root filesystem")]
    Import(ImageImport),
    /// List the images of this machine
    Ls(ImageLs),
    /// Remove names; what nothing uses any more is collected
    Rm {
        #[arg(required = true)]
        names: Vec<String>,
        #[command(flatten)]
        at: ImageAt,
    },
    /// Push an image of this machine, or a file, to a registry
    Push(ImagePush),
}

#[derive(Args)]
pub struct ImageAt {
    #[arg(long, env = "STAITHE_DATA_DIR", value_name = "DIR", default_value = crate::settings::DATA_DIR)]
    pub data_dir: PathBuf,
    /// The embedded registry's port, by which its images are named
    #[arg(long, env = "STAITHE_REGISTRY_PORT", value_name = "PORT", default_value_t = 5000)]
    pub registry_port: u16,
}

#[derive(Args)]
pub struct ImageImport {
    pub file: PathBuf,
    /// What to call it, if the file does not say
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// For a root filesystem: the command's fixed words (may be repeated)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub entrypoint: Vec<String>,
    /// For a root filesystem: the command's default words (may be repeated)
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub cmd: Vec<String>,
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    #[arg(long, value_name = "DIR", default_value = "")]
    pub workdir: String,
    #[arg(long, value_name = "USER", default_value = "")]
    pub user: String,
    #[command(flatten)]
    pub at: ImageAt,
}

#[derive(Args)]
pub struct ImageLs {
    #[command(flatten)]
    pub at: ImageAt,
    #[arg(long, short = 'o', value_enum)]
    pub output: Option<Output>,
}

#[derive(Args)]
pub struct ImagePush {
    pub name: String,
    /// Push this file (forms as for import) instead of an image that is here
    #[arg(long, short = 'f', value_name = "FILE")]
    pub file: Option<PathBuf>,
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub entrypoint: Vec<String>,
    #[arg(long, value_name = "WORD", allow_hyphen_values = true)]
    pub cmd: Vec<String>,
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// USER:PASSWORD for the registry
    #[arg(long, env = "STAITHE_REGISTRY_CREDENTIALS", value_name = "USER:PASSWORD", hide_env_values = true)]
    pub credentials: Option<String>,
    #[command(flatten)]
    pub at: ImageAt,
}
