//! What a verb works with: a client, a namespace, and words turned into paths.

use std::sync::Arc;

use anyhow::{Context, Result, anyhow, bail};
use api::Value;
use api::resource::Resource;
use client::{Client, HttpTransport, Kubeconfig};

use crate::cli::Target;

pub struct Ctx {
    pub client: Client,
    /// For upgrades (exec, attach, port-forward).
    pub transport: Arc<HttpTransport>,
    pub namespace: String,
}

/// An object as the user named it.
pub struct Named {
    pub row: &'static Resource,
    pub name: String,
}

impl Ctx {
    pub fn connect(target: &Target) -> Result<Self> {
        let config = Kubeconfig::find(target.kubeconfig.as_deref(), &target.data_dir)
            .context("is the environment up? `sudo staithe up` starts it and writes a kubeconfig")?;
        let (settings, namespace) = config.settings(target.context.as_deref())?;
        let transport = Arc::new(HttpTransport::new(&settings)?);
        let client = Client::new(transport.clone()).with_field_manager("staithe");
        Ok(Self { client, transport, namespace: target.namespace.clone().unwrap_or(namespace) })
    }

    /// The path of a collection (`name` empty) or an object in the context's namespace.
    pub fn path(&self, row: &Resource, name: &str) -> String {
        path_in(row, &self.namespace, name)
    }

    pub async fn read(&self, named: &Named) -> Result<Value> {
        Ok(self.client.get_path(&self.path(named.row, &named.name)).await?)
    }
}

/// As [`Ctx::path`], in `namespace` (empty: all of them).
pub fn path_in(row: &Resource, namespace: &str, name: &str) -> String {
    let mut path = if row.group.is_empty() { format!("/api/{}", row.version) } else { format!("/apis/{}/{}", row.group, row.version) };
    if row.namespaced() && !namespace.is_empty() {
        path += &format!("/namespaces/{namespace}");
    }
    path += &format!("/{}", row.plural);
    if !name.is_empty() {
        path += &format!("/{name}");
    }
    path
}

/// `?a=b&c=d` of the pairs that have a value.
pub fn query(pairs: &[(&str, &str)]) -> String {
    let encode = |text: &str| {
        let plain = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'.' | b'_' | b'~');
        text.bytes().map(|b| if plain(b) { (b as char).to_string() } else { format!("%{b:02X}") }).collect::<String>()
    };
    let given: Vec<String> = pairs.iter().filter(|(_, v)| !v.is_empty()).map(|(k, v)| format!("{k}={}", encode(v))).collect();
    if given.is_empty() { String::new() } else { format!("?{}", given.join("&")) }
}

pub fn row(word: &str) -> Result<&'static Resource> {
    api::table::find(word).map(|row| &**row).ok_or_else(|| {
        let close = api::table::all().iter().map(|r| r.plural).filter(|p| p.starts_with(&word[..word.len().min(2)]));
        let close: Vec<&str> = close.collect();
        let hint = if close.is_empty() { "see `kubectl api-resources`".into() } else { format!("did you mean {}?", close.join(", ")) };
        anyhow!("the server has no resource type {word:?}; {hint}")
    })
}

/// `TYPE/NAME`, or with `default` given a bare `NAME` of that type.
pub fn named(text: &str, default: Option<&str>) -> Result<Named> {
    match (text.split_once('/'), default) {
        (Some((kind, name)), _) if !name.is_empty() => Ok(Named { row: row(kind)?, name: name.into() }),
        (None, Some(kind)) => Ok(Named { row: row(kind)?, name: text.into() }),
        _ => bail!("{text:?} names no object: say TYPE/NAME, as deployment/web"),
    }
}

/// `TYPE NAME…` or `TYPE/NAME…`.
pub fn several(words: &[String]) -> Result<Vec<Named>> {
    match words {
        [] => bail!("say what: TYPE NAME or TYPE/NAME"),
        [first, rest @ ..] if !first.contains('/') => {
            let row = row(first)?;
            if rest.is_empty() {
                bail!("say which {}: a name, or -l SELECTOR", row.plural);
            }
            Ok(rest.iter().map(|name| Named { row, name: name.clone() }).collect())
        }
        all => all.iter().map(|word| named(word, None)).collect(),
    }
}

/// `app=web` of a workload's `spec.selector`.
pub fn selector_of(object: &Value) -> Result<String> {
    let labels = object["spec"]["selector"]["matchLabels"].as_object().or(object["spec"]["selector"].as_object());
    let labels = labels.ok_or_else(|| anyhow!("{} selects no pods", object["kind"].as_str().unwrap_or("it")))?;
    let pairs: Vec<String> = labels.iter().map(|(k, v)| format!("{k}={}", v.as_str().unwrap_or_default())).collect();
    Ok(pairs.join(","))
}

impl Ctx {
    /// The pod that is meant by `POD`, `pod/NAME` or `TYPE/NAME`: of a workload, a ready one where there is one.
    pub async fn pod(&self, text: &str) -> Result<Value> {
        let named = named(text, Some("pods"))?;
        let object = self.read(&named).await?;
        if named.row.kind == "Pod" {
            return Ok(object);
        }
        let pods = self.pods(&selector_of(&object)?).await?;
        let ready = |pod: &&Value| {
            let conditions = pod["status"]["conditions"].as_array();
            conditions.is_some_and(|all| all.iter().any(|c| c["type"] == "Ready" && c["status"] == "True"))
        };
        let chosen = pods.iter().find(ready).or(pods.first()).cloned();
        chosen.ok_or_else(|| anyhow!("{}/{} has no pods", named.row.singular, named.name))
    }

    pub async fn pods(&self, selector: &str) -> Result<Vec<Value>> {
        let path = self.path(row("pods")?, "") + &query(&[("labelSelector", selector)]);
        let list = self.client.get_path(&path).await?;
        Ok(list["items"].as_array().cloned().unwrap_or_default())
    }
}

/// The container that is meant: the one named, the annotated default, or the first.
pub fn container(pod: &Value, given: Option<&str>) -> Result<String> {
    let spec = &pod["spec"];
    let names: Vec<&str> = ["containers", "initContainers"]
        .iter()
        .flat_map(|list| spec[*list].as_array().into_iter().flatten())
        .filter_map(|c| c["name"].as_str())
        .collect();
    let annotated = pod["metadata"]["annotations"]["kubectl.kubernetes.io/default-container"].as_str();
    match given {
        Some(name) if names.contains(&name) => Ok(name.into()),
        Some(name) => bail!("container {name:?} is not in pod {}: it has {}", text(&pod["metadata"]["name"]), names.join(", ")),
        None => Ok(annotated.or(names.first().copied()).unwrap_or_default().into()),
    }
}

pub fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_become_objects_or_advice() {
        assert_eq!(named("deploy/web", None).unwrap().row.kind, "Deployment");
        assert_eq!(named("web", Some("pods")).unwrap().row.kind, "Pod");
        assert_eq!(several(&["po".into(), "a".into(), "b".into()]).unwrap().len(), 2);
        assert!(named("deploy/", None).is_err());
        let unknown = row("podz").err().unwrap().to_string();
        assert!(unknown.contains("pods"), "{unknown}");
    }

    #[test]
    fn paths_follow_scope_and_group() {
        let pods = row("pods").unwrap();
        assert_eq!(path_in(pods, "a", "x"), "/api/v1/namespaces/a/pods/x");
        assert_eq!(path_in(pods, "", ""), "/api/v1/pods");
        assert_eq!(path_in(row("deployments").unwrap(), "a", ""), "/apis/apps/v1/namespaces/a/deployments");
        assert_eq!(path_in(row("nodes").unwrap(), "a", "n"), "/api/v1/nodes/n");
        assert_eq!(query(&[("a", ""), ("labelSelector", "x=y,z")]), "?labelSelector=x%3Dy%2Cz");
    }
}
