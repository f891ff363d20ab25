//! The images of this machine: names, manifests, configurations and unpacked layers in one place.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::layers::{LayerStore, chain_ids};
use crate::{BlobStore, Credentials, Digest, Error, Reference, Refs, Remote, Result, pull};

/// Bytes fetched of bytes to fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress {
    pub done: u64,
    pub total: u64,
}

/// `config` of an OCI image configuration, in the form that starting a process needs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "PascalCase")]
pub struct ImageConfig {
    pub user: String,
    #[serde(deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub entrypoint: Vec<String>,
    #[serde(deserialize_with = "null_is_default")]
    pub cmd: Vec<String>,
    pub working_dir: String,
    pub stop_signal: String,
    #[serde(deserialize_with = "null_is_default")]
    pub exposed_ports: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_default")]
    pub volumes: BTreeMap<String, serde_json::Value>,
    #[serde(deserialize_with = "null_is_default")]
    pub labels: BTreeMap<String, String>,
}

fn null_is_default<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(d: D) -> Result<T, D::Error> {
    Ok(Option::<T>::deserialize(d)?.unwrap_or_default())
}

/// An image that is ready to run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Image {
    /// As normalised: `docker.io/library/nginx:1.25`.
    pub name: String,
    /// Of the platform's manifest.
    pub digest: Digest,
    pub config: ImageConfig,
    /// Unpacked layers, lowest first.
    pub layers: Vec<PathBuf>,
    pub size_bytes: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Descriptor {
    pub digest: Digest,
    pub size: u64,
    pub media_type: String,
    /// `linux/amd64`, for entries of an index.
    pub platform: String,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Manifest {
    Image { config: Descriptor, layers: Vec<Descriptor>, media_type: String },
    Index(Vec<Descriptor>),
}

/// `linux/amd64` on this machine.
pub fn machine_platform() -> String {
    let arch = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    format!("linux/{arch}")
}

pub fn pick_platform(entries: &[Descriptor]) -> Option<&Descriptor> {
    let ours = machine_platform();
    entries.iter().find(|e| e.platform == ours).or_else(|| entries.iter().find(|e| e.platform.is_empty()).filter(|_| entries.len() == 1))
}

/// Reads an OCI or Docker manifest or index; the digest has been checked by whoever got the bytes.
pub fn parse_manifest(bytes: &[u8]) -> Result<Manifest> {
    let bad = |why: &str| Error::Invalid(format!("the manifest is not valid: {why}"));
    let value: serde_json::Value = serde_json::from_slice(bytes).map_err(|e| bad(&e.to_string()))?;
    if value["schemaVersion"] != 2 {
        return Err(bad("schemaVersion is not 2 (schema 1 images are no longer supported)"));
    }
    let descriptor = |v: &serde_json::Value| -> Result<Descriptor> {
        let digest = Digest::parse(v["digest"].as_str().unwrap_or_default())?;
        let size = v["size"].as_u64().ok_or_else(|| bad("a descriptor has no size"))?;
        let text = |v: &serde_json::Value| v.as_str().unwrap_or_default().to_string();
        let platform = match (&v["platform"]["os"], &v["platform"]["architecture"]) {
            (serde_json::Value::String(os), serde_json::Value::String(arch)) => format!("{os}/{arch}"),
            _ => String::new(),
        };
        Ok(Descriptor { digest, size, media_type: text(&v["mediaType"]), platform })
    };
    if let Some(entries) = value["manifests"].as_array() {
        return Ok(Manifest::Index(entries.iter().map(descriptor).collect::<Result<_>>()?));
    }
    let layers = value["layers"].as_array().ok_or_else(|| bad("it has neither layers nor manifests"))?;
    let media_type = value["mediaType"].as_str().unwrap_or("application/vnd.oci.image.manifest.v1+json");
    Ok(Manifest::Image {
        config: descriptor(&value["config"])?,
        layers: layers.iter().map(descriptor).collect::<Result<_>>()?,
        media_type: media_type.to_string(),
    })
}

/// What `open` needs to know.
#[derive(Clone)]
pub struct Options {
    /// `<data>/artifacts`
    pub root: PathBuf,
    pub remote: Remote,
    /// Registry names that mean the embedded registry: `localhost:5000`. Read from the store, not over HTTP.
    pub embedded: Vec<String>,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Images {
    pub blobs: BlobStore,
    pub layers: LayerStore,
    /// Names of pulled and imported images.
    pub names: Refs,
    /// The embedded registry's repositories.
    pub registry: Refs,
    remote: Remote,
    embedded: Arc<[String]>,
    pulls: Arc<tokio::sync::Mutex<BTreeMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

/// A row of `staithe image ls`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Listed {
    pub name: String,
    pub digest: Digest,
    pub size_bytes: u64,
    /// In the embedded registry, as opposed to pulled or imported.
    pub in_registry: bool,
}

impl Images {
    pub fn open(options: Options) -> Result<Self> {
        let root: &Path = &options.root;
        Ok(Self {
            blobs: BlobStore::open(root)?,
            layers: LayerStore::open(root)?,
            names: Refs::open(root, "images")?,
            registry: Refs::open(root, "registry")?,
            remote: options.remote,
            embedded: options.embedded.into(),
            pulls: Arc::default(),
        })
    }

    fn is_embedded(&self, reference: &Reference) -> bool {
        self.embedded.contains(&reference.registry)
    }

    /// The manifest (or index) that a name stands for without asking any other machine.
    pub fn local(&self, reference: &Reference) -> Option<Digest> {
        if let Some(digest) = &reference.digest {
            return Some(digest.clone()).filter(|d| self.blobs.has(d));
        }
        let tag = reference.tag.as_deref()?;
        if self.is_embedded(reference) {
            return self.registry.resolve(&reference.repository, tag);
        }
        self.names.resolve(&reference.name(), tag)
    }

    /// Makes the image of `text` ready to run. `always` asks the registry even if the name is known here; `never` does not
    /// ask at all.
    pub async fn ensure(
        &self,
        text: &str,
        always: bool,
        never: bool,
        credentials: &[Credentials],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Image> {
        let reference = Reference::parse(text)?;
        let one = self.pulls.lock().await.entry(reference.to_string()).or_default().clone();
        let _guard = one.lock().await;
        let known = self.local(&reference);
        if let Some(digest) = &known
            && (self.is_embedded(&reference) || never || !always || reference.digest.is_some())
            && let Ok(image) = self.ready(&reference, digest).await
        {
            return Ok(image);
        }
        if never || self.is_embedded(&reference) {
            return match known {
                Some(digest) => self.ready(&reference, &digest).await,
                None => Err(Error::NotFound(reference.to_string())),
            };
        }
        let digest = self.pull(&reference, credentials, progress).await?;
        self.ready(&reference, &digest).await
    }

    async fn pull(
        &self,
        reference: &Reference,
        credentials: &[Credentials],
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<Digest> {
        let mut attempts: Vec<Option<Credentials>> = credentials.iter().cloned().map(Some).collect();
        if attempts.is_empty() {
            attempts.push(None);
        }
        let mut last = None;
        for credentials in attempts {
            let session = self.remote.session(reference, credentials);
            match pull::pull(&session, &reference.wanted(), &self.blobs, progress).await {
                Ok(resolved) => {
                    if let Some(tag) = &reference.tag {
                        self.names.tag(&reference.name(), tag, &resolved.digest)?;
                    }
                    self.names.link(&reference.name(), &resolved.digest, "")?;
                    return Ok(resolved.digest);
                }
                Err(e @ Error::Unauthorized(..)) => last = Some(e),
                Err(e) => return Err(e),
            }
        }
        Err(last.unwrap_or_else(|| Error::NotFound(reference.to_string())))
    }

    /// Gives an image that is here a name.
    pub fn name(&self, reference: &Reference, digest: &Digest) -> Result<()> {
        let tag = reference.tag.as_deref().unwrap_or("latest");
        if self.is_embedded(reference) {
            self.registry.link(&reference.repository, digest, "application/vnd.oci.image.manifest.v1+json")?;
            return self.registry.tag(&reference.repository, tag, digest);
        }
        self.names.link(&reference.name(), digest, "")?;
        self.names.tag(&reference.name(), tag, digest)
    }

    /// The platform's manifest behind a manifest or an index that is here.
    fn platform_manifest(&self, digest: &Digest) -> Result<(Digest, Descriptor, Vec<Descriptor>)> {
        let mut digest = digest.clone();
        for _ in 0..2 {
            match parse_manifest(&self.blobs.read(&digest)?)? {
                Manifest::Image { config, layers, .. } => return Ok((digest, config, layers)),
                Manifest::Index(entries) => {
                    let ours = pick_platform(&entries);
                    let none = || Error::Invalid(format!("no image for {} in {digest}", machine_platform()));
                    digest = ours.ok_or_else(none)?.digest.clone();
                }
            }
        }
        Err(Error::Invalid(format!("{digest} is an index of indexes")))
    }

    async fn ready(&self, reference: &Reference, digest: &Digest) -> Result<Image> {
        let (this, reference, digest) = (self.clone(), reference.clone(), digest.clone());
        let work = tokio::task::spawn_blocking(move || this.ready_blocking(&reference, &digest));
        work.await.map_err(|e| Error::Invalid(format!("unpacking ended: {e}")))?
    }

    fn ready_blocking(&self, reference: &Reference, digest: &Digest) -> Result<Image> {
        let (digest, config, layers) = self.platform_manifest(digest)?;
        let (image_config, diff_ids) = self.configuration(&config.digest)?;
        if diff_ids.len() != layers.len() {
            return Err(Error::Invalid(format!("{reference}: {} layers but {} diff_ids", layers.len(), diff_ids.len())));
        }
        let pairs: Vec<(Digest, Digest)> = layers.iter().map(|l| l.digest.clone()).zip(diff_ids).collect();
        let size_bytes = config.size + layers.iter().map(|l| l.size).sum::<u64>();
        let layers = self.layers.ensure(&self.blobs, &pairs)?;
        Ok(Image { name: reference.to_string(), digest, config: image_config, layers, size_bytes })
    }

    fn configuration(&self, digest: &Digest) -> Result<(ImageConfig, Vec<Digest>)> {
        #[derive(Deserialize)]
        struct RootFs {
            #[serde(default)]
            diff_ids: Vec<Digest>,
        }
        #[derive(Deserialize)]
        struct Configuration {
            architecture: String,
            #[serde(default)]
            config: Option<ImageConfig>,
            rootfs: RootFs,
        }
        let parsed: Configuration = serde_json::from_slice(&self.blobs.read(digest)?)
            .map_err(|e| Error::Invalid(format!("the image configuration {digest} is not valid: {e}")))?;
        let platform = format!("linux/{}", parsed.architecture);
        if platform != machine_platform() {
            return Err(Error::Invalid(format!("the image is for {platform}, this machine is {}", machine_platform())));
        }
        Ok((parsed.config.unwrap_or_default(), parsed.rootfs.diff_ids))
    }

    /// Every named image, by name.
    pub fn list(&self) -> Vec<Listed> {
        let mut all = Vec::new();
        for (refs, in_registry) in [(&self.names, false), (&self.registry, true)] {
            let prefix = if in_registry { self.embedded.first().map(|e| format!("{e}/")).unwrap_or_default() } else { String::new() };
            for repository in refs.repositories() {
                for tag in refs.tags(&repository) {
                    let Some(digest) = refs.resolve(&repository, &tag) else { continue };
                    let size_bytes = self.reachable(&digest).iter().filter_map(|d| self.blobs.size(d)).sum();
                    all.push(Listed { name: format!("{prefix}{repository}:{tag}"), digest, size_bytes, in_registry });
                }
            }
        }
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }

    /// Takes a name away; blobs go with the next collection.
    pub fn remove(&self, text: &str) -> Result<()> {
        let reference = Reference::parse(text)?;
        let tag = reference.tag.clone().unwrap_or_else(|| "latest".into());
        let gone = if self.is_embedded(&reference) {
            self.registry.untag(&reference.repository, &tag)
        } else {
            self.names.untag(&reference.name(), &tag)
        };
        if gone { Ok(()) } else { Err(Error::NotFound(reference.to_string())) }
    }

    /// A manifest and all it names, as far as it is here.
    fn reachable(&self, digest: &Digest) -> BTreeSet<Digest> {
        let mut found = BTreeSet::new();
        let mut queue = vec![digest.clone()];
        while let Some(digest) = queue.pop() {
            if !found.insert(digest.clone()) {
                continue;
            }
            match self.blobs.read(&digest).and_then(|b| parse_manifest(&b)) {
                Ok(Manifest::Image { config, layers, .. }) => found.extend(layers.into_iter().chain([config]).map(|d| d.digest)),
                Ok(Manifest::Index(entries)) => queue.extend(entries.into_iter().map(|e| e.digest)),
                Err(_) => {}
            }
        }
        found
    }

    /// Mark and sweep. Kept: what a tag or a registry's manifest reaches, the manifests `in_use`, and everything younger than
    /// `min_age` (a push names its manifest last). When named images take more than `budget_bytes`, names of pulled images
    /// that are not in use go too, least recently changed first. Returns bytes freed. Blocking.
    pub fn collect(&self, in_use: &BTreeSet<Digest>, budget_bytes: u64, min_age: std::time::Duration) -> Result<u64> {
        self.forget_over_budget(in_use, budget_bytes)?;
        let mut keep = BTreeSet::new();
        for digest in in_use {
            keep.extend(self.reachable(digest));
        }
        for refs in [&self.names, &self.registry] {
            for repository in refs.repositories() {
                for tag in refs.tags(&repository) {
                    keep.extend(refs.resolve(&repository, &tag).into_iter().flat_map(|d| self.reachable(&d)));
                }
            }
        }
        for repository in self.registry.repositories() {
            keep.extend(self.registry.manifests(&repository).iter().flat_map(|d| self.reachable(d)));
        }
        let mut chains = BTreeSet::new();
        for digest in &keep {
            if let Ok((_, diff_ids)) = self.configuration(digest) {
                chains.extend(chain_ids(&diff_ids));
            }
        }
        for chain in self.layers.list() {
            if !chains.contains(&chain) {
                self.layers.remove(&chain)?;
            }
        }
        let mut freed = 0;
        for (digest, meta) in self.blobs.list()? {
            let young = meta.modified().ok().and_then(|t| t.elapsed().ok()).is_none_or(|age| age < min_age);
            if !keep.contains(&digest) && !young {
                self.blobs.remove(&digest)?;
                freed += meta.len();
            }
        }
        self.blobs.drop_stale_uploads();
        Ok(freed)
    }

    fn forget_over_budget(&self, in_use: &BTreeSet<Digest>, budget_bytes: u64) -> Result<()> {
        let age = |d: &Digest| std::fs::metadata(self.blobs.path(d)).and_then(|m| m.modified()).ok();
        let mut named: Vec<Listed> = self.list().into_iter().filter(|l| !l.in_registry).collect();
        let mut total: u64 = self.blobs.list()?.iter().map(|(_, m)| m.len()).sum();
        named.sort_by_key(|l| age(&l.digest));
        for listed in named {
            if total <= budget_bytes {
                break;
            }
            if !in_use.contains(&listed.digest) {
                self.remove(&listed.name)?;
                total = total.saturating_sub(listed.size_bytes);
            }
        }
        Ok(())
    }

    /// Sends an image that is here to the registry of `reference`.
    pub async fn push(
        &self,
        digest: &Digest,
        reference: &Reference,
        credentials: Option<Credentials>,
        progress: &(dyn Fn(Progress) + Send + Sync),
    ) -> Result<()> {
        let session = self.remote.session(reference, credentials);
        pull::push(&session, &reference.wanted(), digest, &self.blobs, progress).await
    }
}
