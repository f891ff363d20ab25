//! Which objects a controller manages: adoption of matching orphans, release of what no longer matches.
//!
//! Source: upstream's `ControllerRefManager`. Nothing is adopted or released by an owner that is being deleted.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use crate::action::{Action, Object};
use crate::{objects, selector};

/// What of the candidates belongs to the owner, and the patches that settle the rest.
pub struct Claim<'a, K> {
    /// Managed by the owner and matching its selector.
    pub owned: Vec<&'a K>,
    /// Adoptions and releases. Their objects are not among `owned` before the patch is seen.
    pub patches: Vec<Action>,
}

/// Sorts candidates (all of one namespace) into owned, to adopt, to release, and none of our business.
pub fn claim<'a, O: Object, K: Object>(owner: &O, wanted: &LabelSelector, candidates: impl IntoIterator<Item = &'a K>) -> Claim<'a, K> {
    let mut out = Claim { owned: Vec::new(), patches: Vec::new() };
    for object in candidates {
        let meta = object.metadata();
        let matches = selector::matches(wanted, meta.labels.as_ref());
        match objects::controller_of(meta) {
            Some(by) if by.uid == objects::uid(owner) && matches => out.owned.push(object),
            Some(by) if by.uid == objects::uid(owner) && !objects::deleting(owner) => out.patches.extend(release(owner, object)),
            Some(_) => {}
            None if matches && !objects::deleting(owner) && !objects::deleting(object) => out.patches.extend(adopt(owner, object)),
            None => {}
        }
    }
    out
}

fn adopt<O: Object, K: Object>(owner: &O, object: &K) -> Option<Action> {
    let mut wanted = object.clone();
    wanted.metadata_mut().owner_references.get_or_insert_default().push(objects::controller_ref(owner));
    Action::patch(object, &wanted, None)
}

fn release<O: Object, K: Object>(owner: &O, object: &K) -> Option<Action> {
    let mut wanted = object.clone();
    let kept: Vec<_> = object.metadata().owner_references.iter().flatten().filter(|o| o.uid != objects::uid(owner)).cloned().collect();
    wanted.metadata_mut().owner_references = (!kept.is_empty()).then_some(kept);
    Action::patch(object, &wanted, None)
}
