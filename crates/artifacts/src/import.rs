//! Images from files: an OCI layout (directory or tar), a `docker save` archive, or a plain root filesystem.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde_json::{Value, json};

use crate::digest::Hashing;
use crate::images::{Images, machine_platform};
use crate::unpack::decompress;
use crate::{BlobStore, Digest, Error, Reference, Result, limits};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// How the files of an archive or a directory are found by name.
enum Source {
    Directory(PathBuf),
    /// Offset and size of each member of an uncompressed tar.
    Tar(File, BTreeMap<String, (u64, u64)>),
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let meta = fs::metadata(path).map_err(Error::io(format!("open {}", path.display())))?;
        if meta.is_dir() {
            return Ok(Source::Directory(path.to_path_buf()));
        }
        let file = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
        let mut plain = tempfile::tempfile().map_err(Error::io("create a temporary file"))?;
        io::copy(&mut decompress(file)?, &mut plain).map_err(Error::io(format!("read {}", path.display())))?;
        plain.seek(SeekFrom::Start(0)).map_err(Error::io("rewind"))?;
        let mut members = BTreeMap::new();
        let mut archive = tar::Archive::new(&plain);
        let broken = |e| Error::Invalid(format!("{} is neither an image nor a tar archive: {e}", path.display()));
        for entry in archive.entries_with_seek().map_err(broken)? {
            let entry = entry.map_err(broken)?;
            let name = String::from_utf8_lossy(&entry.path_bytes()).trim_start_matches("./").to_string();
            members.insert(name, (entry.raw_file_position(), entry.size()));
        }
        if members.is_empty() {
            return Err(Error::Invalid(format!("{} is an empty archive", path.display())));
        }
        Ok(Source::Tar(plain, members))
    }

    fn has(&self, name: &str) -> bool {
        match self {
            Source::Directory(dir) => dir.join(name).is_file(),
            Source::Tar(_, members) => members.contains_key(name),
        }
    }

    fn reader(&self, name: &str) -> Result<Box<dyn Read + '_>> {
        let missing = || Error::Invalid(format!("the image names {name}, which is not in it"));
        // A name out of a manifest is data from outside.
        if name.starts_with('/') || name.split('/').any(|part| part == "..") {
            return Err(Error::Invalid(format!("the image names {name}, which is outside of it")));
        }
        match self {
            Source::Directory(dir) => Ok(Box::new(File::open(dir.join(name)).map_err(|_| missing())?)),
            Source::Tar(file, members) => {
                let (offset, size) = members.get(name).ok_or_else(missing)?;
                let mut file = file.try_clone().map_err(Error::io("read"))?;
                file.seek(SeekFrom::Start(*offset)).map_err(Error::io("read"))?;
                Ok(Box::new(file.take(*size)))
            }
        }
    }

    fn json(&self, name: &str) -> Result<Value> {
        let mut bytes = Vec::new();
        self.reader(name)?.take(limits::MANIFEST_BYTES_MAX).read_to_end(&mut bytes).map_err(Error::io(format!("read {name}")))?;
        serde_json::from_slice(&bytes).map_err(|e| Error::Invalid(format!("{name} is not valid: {e}")))
    }
}

/// What to call an imported image, and how to start a plain root filesystem.
#[derive(Debug, Clone, Default)]
pub struct ImportOptions {
    /// Overrides the name in the file; needed where the file has none.
    pub name: Option<String>,
    pub entrypoint: Vec<String>,
    pub cmd: Vec<String>,
    pub env: Vec<String>,
    pub working_dir: String,
    pub user: String,
}

/// Imports every image of `path` and returns their names. Blocking.
pub fn import(images: &Images, path: &Path, options: &ImportOptions) -> Result<Vec<(Reference, Digest)>> {
    let source = Source::open(path)?;
    let found = if source.has("oci-layout") {
        oci_layout(&images.blobs, &source)?
    } else if source.has("manifest.json") {
        docker_archive(&images.blobs, &source)?
    } else {
        match &source {
            Source::Tar(..) => vec![(None, root_filesystem(&images.blobs, path, options)?)],
            Source::Directory(_) => {
                return Err(Error::Invalid(format!("{} has neither oci-layout nor manifest.json in it", path.display())));
            }
        }
    };
    let mut named = Vec::new();
    for (name, digest) in found {
        let name = options.name.clone().or(name);
        let name = name.ok_or_else(|| Error::Invalid(format!("{} does not say the image's name: give one", path.display())))?;
        let reference = Reference::parse(&name)?;
        images.name(&reference, &digest)?;
        named.push((reference, digest));
    }
    Ok(named)
}

/// Copies a blob in, verified.
fn take_blob(blobs: &BlobStore, source: &Source, name: &str, expected: &Digest) -> Result<u64> {
    if let Some(size) = blobs.size(expected) {
        return Ok(size);
    }
    let mut upload = blobs.upload(&format!("import-{}", expected.hex()), true)?;
    let size = io::copy(&mut source.reader(name)?, &mut upload).map_err(Error::io(format!("read {name}")))?;
    upload.commit(expected)?;
    Ok(size)
}

/// Source: image-spec 1.1 `image-layout.md`.
fn oci_layout(blobs: &BlobStore, source: &Source) -> Result<Vec<(Option<String>, Digest)>> {
    let index = source.json("index.json")?;
    let mut found = Vec::new();
    for entry in index["manifests"].as_array().into_iter().flatten() {
        let digest = Digest::parse(entry["digest"].as_str().unwrap_or_default())?;
        let mut queue = vec![digest.clone()];
        while let Some(next) = queue.pop() {
            let file = format!("blobs/sha256/{}", next.hex());
            take_blob(blobs, source, &file, &next)?;
            let Ok(manifest) = source.json(&file) else { continue };
            for child in manifest["manifests"].as_array().into_iter().flatten() {
                let child = Digest::parse(child["digest"].as_str().unwrap_or_default())?;
                // Layouts made by `skopeo copy` hold one platform of many: what is absent is not asked for.
                if source.has(&format!("blobs/sha256/{}", child.hex())) {
                    queue.push(child);
                }
            }
            for blob in manifest["layers"].as_array().into_iter().flatten().chain(manifest.get("config")) {
                let digest = Digest::parse(blob["digest"].as_str().unwrap_or_default())?;
                take_blob(blobs, source, &format!("blobs/sha256/{}", digest.hex()), &digest)?;
            }
        }
        let annotations = &entry["annotations"];
        let name = annotations["io.containerd.image.name"].as_str().or(annotations["org.opencontainers.image.ref.name"].as_str());
        found.push((name.map(str::to_string), digest));
    }
    if found.is_empty() { Err(Error::Invalid("the OCI layout's index.json lists no image".into())) } else { Ok(found) }
}

/// `docker save`: `manifest.json` lists configuration, layers (plain tars) and names.
fn docker_archive(blobs: &BlobStore, source: &Source) -> Result<Vec<(Option<String>, Digest)>> {
    let mut found = Vec::new();
    for entry in source.json("manifest.json")?.as_array().into_iter().flatten() {
        let text = |v: &Value| v.as_str().unwrap_or_default().to_string();
        let mut config = Vec::new();
        source
            .reader(&text(&entry["Config"]))?
            .take(limits::MANIFEST_BYTES_MAX)
            .read_to_end(&mut config)
            .map_err(Error::io("read config"))?;
        let config_digest = blobs.put(&config)?;
        let mut layers = Vec::new();
        for layer in entry["Layers"].as_array().into_iter().flatten() {
            let (digest, size) = take_stream(blobs, &mut source.reader(&text(layer))?)?;
            layers.push(json!({ "mediaType": LAYER, "digest": digest, "size": size }));
        }
        let manifest = manifest(&config_digest, config.len(), layers);
        let digest = blobs.put(manifest.to_string().as_bytes())?;
        let names: Vec<String> = entry["RepoTags"].as_array().into_iter().flatten().map(text).collect();
        if names.is_empty() {
            found.push((None, digest.clone()));
        }
        found.extend(names.into_iter().map(|n| (Some(n), digest.clone())));
    }
    if found.is_empty() { Err(Error::Invalid("manifest.json lists no image".into())) } else { Ok(found) }
}

/// One layer, a configuration made from the options.
fn root_filesystem(blobs: &BlobStore, path: &Path, options: &ImportOptions) -> Result<Digest> {
    let file = File::open(path).map_err(Error::io(format!("open {}", path.display())))?;
    let (digest, size) = take_stream(blobs, &mut decompress(file)?)?;
    let platform = machine_platform();
    let (os, architecture) = platform.split_once('/').unwrap_or(("linux", "amd64"));
    let mut env = options.env.clone();
    if !env.iter().any(|e| e.starts_with("PATH=")) {
        env.insert(0, "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_string());
    }
    let config = json!({
        "architecture": architecture, "os": os,
        "config": {
            "Entrypoint": options.entrypoint, "Cmd": options.cmd, "Env": env,
            "WorkingDir": options.working_dir, "User": options.user,
        },
        "rootfs": { "type": "layers", "diff_ids": [digest] },
    })
    .to_string();
    let config_digest = blobs.put(config.as_bytes())?;
    let manifest = manifest(&config_digest, config.len(), vec![json!({ "mediaType": LAYER, "digest": digest, "size": size })]);
    blobs.put(manifest.to_string().as_bytes())
}

fn manifest(config: &Digest, config_size: usize, layers: Vec<Value>) -> Value {
    json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config, "size": config_size },
        "layers": layers,
    })
}

/// Stores a stream whose digest is not known before its end.
pub fn take_stream(blobs: &BlobStore, stream: &mut dyn Read) -> Result<(Digest, u64)> {
    static NEXT: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(0);
    let n = NEXT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
    let mut upload = blobs.upload(&format!("stream-{:x}-{n}", std::process::id()), true)?;
    let mut hashed = Hashing::new(stream);
    io::copy(&mut hashed, &mut upload).map_err(Error::io("read layer"))?;
    upload.flush().map_err(Error::io("write layer"))?;
    let (_, digest, size) = hashed.digest();
    upload.commit(&digest)?;
    Ok((digest, size))
}
