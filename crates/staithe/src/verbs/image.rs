//! `staithe image`: the images of this machine. Works on the artifact store itself, whether the server runs or not.

use anyhow::{Context, Result, bail};
use artifacts::images::{Images, Options};
use artifacts::import::{ImportOptions, import};
use artifacts::{Credentials, Reference, Remote};

use crate::cli::{Image, ImageAt, ImageImport, ImagePush, Output};
use crate::output::{self, Spinner};

/// The names by which the embedded registry is meant.
pub fn embedded(port: u16) -> Vec<String> {
    vec![format!("localhost:{port}"), format!("127.0.0.1:{port}")]
}

fn open(at: &ImageAt) -> Result<Images> {
    if !at.data_dir.join("version").exists() {
        bail!(
            "{} is not a data directory of Staithe: start one with `sudo staithe up`, or name yours with --data-dir",
            at.data_dir.display()
        );
    }
    let options =
        Options { root: at.data_dir.join("artifacts"), remote: Remote::new(vec![], vec![]), embedded: embedded(at.registry_port) };
    Images::open(options).context("is this run as root?")
}

pub async fn run(command: Image) -> Result<()> {
    match command {
        Image::Import(args) => import_file(args).await,
        Image::Ls(args) => {
            let images = open(&args.at)?;
            let listed = images.list();
            if matches!(args.output, Some(Output::Json | Output::Yaml)) {
                let value = serde_json::to_value(&listed)?;
                output::print(&match args.output {
                    Some(Output::Yaml) => output::yaml(&value)?,
                    _ => format!("{}\n", serde_json::to_string_pretty(&value)?),
                });
                return Ok(());
            }
            let header: Vec<String> = ["NAME", "DIGEST", "SIZE", "WHERE"].map(String::from).into();
            let rows: Vec<Vec<String>> = listed
                .iter()
                .map(|l| {
                    let size = format!("{:.1} MiB", l.size_bytes as f64 / f64::from(1 << 20));
                    let place = if l.in_registry { "registry" } else { "node" };
                    vec![l.name.clone(), l.digest.hex()[..12].into(), size, place.into()]
                })
                .collect();
            output::print(&output::columns(Some(&header), &rows));
            Ok(())
        }
        Image::Rm { names, at } => {
            let images = open(&at)?;
            for name in names {
                images.remove(&name)?;
                println!("{name} removed");
            }
            Ok(())
        }
        Image::Push(args) => push(args).await,
    }
}

async fn import_file(args: ImageImport) -> Result<()> {
    let images = open(&args.at)?;
    let options = ImportOptions {
        name: args.name,
        entrypoint: args.entrypoint,
        cmd: args.cmd,
        env: args.env,
        working_dir: args.workdir,
        user: args.user,
    };
    let spinner = Spinner::start(&format!("importing {}", args.file.display()));
    let file = args.file.clone();
    let found = tokio::task::spawn_blocking(move || import(&images, &file, &options)).await??;
    drop(spinner);
    for (reference, digest) in found {
        println!("{reference} {digest}");
    }
    Ok(())
}

async fn push(args: ImagePush) -> Result<()> {
    let reference = Reference::parse(&args.name)?;
    let credentials = match &args.credentials {
        None => None,
        Some(pair) => {
            let (username, password) = pair.split_once(':').context("--credentials: USER:PASSWORD")?;
            Some(Credentials { username: username.into(), password: password.into() })
        }
    };
    let spinner = Spinner::start(&format!("pushing {reference}"));
    let tell = |p: artifacts::Progress| spinner.say(&format!("pushing {reference}: {} of {} KiB", p.done >> 10, p.total >> 10));
    match &args.file {
        None => {
            let images = open(&args.at)?;
            let digest = images.local(&reference).with_context(|| format!("{reference} is not on this machine; -f FILE pushes a file"))?;
            images.push(&digest, &reference, credentials, &tell).await?;
        }
        Some(file) => {
            // A file is staged beside the store, not in it: a push must not leave names behind.
            let stage = tempfile::tempdir()?;
            let options = Options { root: stage.path().into(), remote: Remote::new(vec![], vec![]), embedded: vec![] };
            let images = Images::open(options)?;
            let how = ImportOptions {
                name: Some(args.name.clone()),
                entrypoint: args.entrypoint,
                cmd: args.cmd,
                env: args.env,
                ..Default::default()
            };
            let (_, digest) = import(&images, file, &how)?.pop().context("the file holds no image")?;
            images.push(&digest, &reference, credentials, &tell).await?;
        }
    }
    spinner.done(&format!("pushed {reference}"));
    Ok(())
}
