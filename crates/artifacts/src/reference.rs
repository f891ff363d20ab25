//! Image names as users write them: `nginx`, `ghcr.io/a/b:1`, `localhost:5000/shop/orders@sha256:…`.
//!
//! Source: distribution/reference's grammar and Docker's normalisation (`nginx` is `docker.io/library/nginx:latest`).

use std::fmt;

use crate::{Digest, Error, Result};

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference {
    /// `docker.io`, `localhost:5000`
    pub registry: String,
    /// `library/nginx`
    pub repository: String,
    pub tag: Option<String>,
    pub digest: Option<Digest>,
}

impl Reference {
    pub fn parse(text: &str) -> Result<Self> {
        let bad = |why: &str| Error::BadReference(text.to_string(), why.to_string());
        if text.len() > 4096 {
            return Err(bad("the name is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, d)) => (rest, Some(Digest::parse(d).map_err(|_| bad("the digest is not sha256:<64 hex digits>"))?)),
            None => (text, None),
        };
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag.to_string())),
            _ => (rest, None),
        };
        if tag.as_deref().is_some_and(|t| !valid_tag(t)) {
            return Err(bad("the tag may hold letters, digits, '_', '.' and '-', 128 at most"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => (host.to_string(), path.to_string()),
            _ => ("docker.io".to_string(), name.to_string()),
        };
        let registry = if registry == "index.docker.io" { "docker.io".to_string() } else { registry };
        let repository = if registry == "docker.io" && !path.contains('/') { format!("library/{path}") } else { path };
        if !valid_repository(&repository) {
            return Err(bad("the repository may hold lower-case letters and digits, separated by '.', '_', '-' or '/'"));
        }
        if !valid_registry(&registry) {
            return Err(bad("the registry is not a host name with an optional port"));
        }
        let tag = if tag.is_none() && digest.is_none() { Some("latest".to_string()) } else { tag };
        Ok(Self { registry, repository, tag, digest })
    }

    /// `docker.io/library/nginx`: the name without tag and digest.
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// What the registry is asked for: the digest where there is one, else the tag.
    pub fn wanted(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(d), _) => d.to_string(),
            (None, Some(t)) => t.clone(),
            (None, None) => "latest".to_string(),
        }
    }

    /// The host that is dialled: Docker Hub's API has another name than its images.
    pub fn host(&self) -> &str {
        if self.registry == "docker.io" { "registry-1.docker.io" } else { &self.registry }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

/// A host name or address with an optional port; also safe as the name of a directory.
fn valid_registry(registry: &str) -> bool {
    registry.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric() || b == b'[')
        && !registry.contains("..")
        && registry.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b':' | b'[' | b']'))
}

/// `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`
pub fn valid_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&tag.len()) && tag.bytes().next().is_some_and(word) && tag.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

/// Path components of lower-case letters and digits with single `.`, `_`, `__` or dashes between (distribution-spec).
pub fn valid_repository(name: &str) -> bool {
    name.len() <= 255 && name.split('/').all(valid_component)
}

fn valid_component(part: &str) -> bool {
    let alnum = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let (first, last) = (part.bytes().next(), part.bytes().last());
    first.is_some_and(alnum)
        && last.is_some_and(alnum)
        && part.bytes().all(|b| alnum(b) || matches!(b, b'.' | b'_' | b'-'))
        && !["..", "._", "_.", "___", ".-", "-.", "_-", "-_"].iter().any(|pair| part.contains(pair))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_as_docker_does() {
        let table = [
            ("nginx", "docker.io/library/nginx:latest"),
            ("nginx:1.25", "docker.io/library/nginx:1.25"),
            ("bitnami/redis", "docker.io/bitnami/redis:latest"),
            ("index.docker.io/a/b", "docker.io/a/b:latest"),
            ("localhost/a", "localhost/a:latest"),
            ("localhost:5000/shop/orders:1", "localhost:5000/shop/orders:1"),
            ("ghcr.io/a/b.c_d-e:v1.0", "ghcr.io/a/b.c_d-e:v1.0"),
        ];
        for (given, expected) in table {
            assert_eq!(Reference::parse(given).unwrap().to_string(), expected);
        }
        let d = Digest::of(b"x");
        let by_digest = Reference::parse(&format!("localhost:5000/a@{d}")).unwrap();
        assert_eq!((by_digest.tag.as_deref(), by_digest.wanted()), (None, d.to_string()));
    }

    #[test]
    fn names_that_could_leave_the_store_are_refused() {
        for bad in
            ["", "UPPER", "a/../b", "../x", "a//b", "a:", "a:b:c/", "x@sha256:1", "a b", "host:5000/", "/a", "a/.", "ho$t.x/a", "a:-x"]
        {
            assert!(Reference::parse(bad).is_err(), "{bad:?}");
        }
    }
}
