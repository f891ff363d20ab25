//! Slices of at most 100 endpoints: what stays, stays where it is, so that one pod's change rewrites one slice.

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::{Group, HEADLESS, MANAGED_BY, Port, SERVICE_NAME, Snapshot};
use crate::limits::ENDPOINTS_PER_SLICE_MAX;
use crate::{Action, Cx, Plan, objects};

/// Slices of one manager and family as `groups` want them: changes and new ones first, then deletions.
pub(super) fn plan(s: &Snapshot, manager: &str, family: &str, mut groups: Vec<Group>, cx: &Cx, plan: &mut Plan) {
    let managed =
        |slice: &EndpointSlice| slice.metadata.labels.as_ref().and_then(|l| l.get(MANAGED_BY)).map(String::as_str) == Some(manager);
    let mut have: Vec<&EndpointSlice> =
        s.slices.iter().copied().filter(|x| managed(x) && x.address_type == family && !objects::deleting(*x)).collect();
    have.sort_by_key(|x| objects::name(*x));
    if groups.is_empty() && manager == super::MANAGER {
        // One empty slice says that the Service is known and nobody answers for it.
        groups.push((Vec::new(), Vec::new()));
    }
    let mut write = Vec::new();
    for (ports, endpoints) in groups {
        let here: Vec<&EndpointSlice> = {
            let (here, rest) = have.into_iter().partition(|x| same_ports(x, &ports));
            have = rest;
            here
        };
        let (kept, gone) = place(s, manager, family, &ports, endpoints, here, cx, &mut write);
        have.extend(gone);
        debug_assert!(kept > 0);
    }
    plan.wave(write).wave(have.into_iter().map(Action::delete));
}

fn same_ports(slice: &EndpointSlice, ports: &[Port]) -> bool {
    let mut theirs: Vec<Port> = slice.ports.iter().flatten().map(Port::from).collect();
    theirs.sort();
    theirs == ports
}

/// Puts the endpoints of one group into slices. Returns how many slices carry it, and those that it needs no more.
#[allow(clippy::too_many_arguments)]
fn place<'a>(
    s: &Snapshot,
    manager: &str,
    family: &str,
    ports: &[Port],
    mut wanted: Vec<Endpoint>,
    have: Vec<&'a EndpointSlice>,
    cx: &Cx,
    write: &mut Vec<Action>,
) -> (usize, Vec<&'a EndpointSlice>) {
    // Those that stay, in their present order and place.
    let mut next: Vec<(Option<&'a EndpointSlice>, Vec<Endpoint>)> = Vec::new();
    for slice in have {
        let mut stay = Vec::new();
        for old in &slice.endpoints {
            if let Some(at) = wanted.iter().position(|new| same_endpoint(old, new)) {
                stay.push(wanted.remove(at));
            }
        }
        next.push((Some(slice), stay));
    }
    // Newcomers go where something changes anyway, then where there is room, then into slices of their own.
    next.sort_by_key(|(slice, stay)| slice.is_some_and(|x| x.endpoints == *stay));
    let mut newcomers = wanted.into_iter();
    for (_, stay) in &mut next {
        let room = ENDPOINTS_PER_SLICE_MAX.saturating_sub(stay.len());
        stay.extend(newcomers.by_ref().take(room));
    }
    loop {
        let more: Vec<Endpoint> = newcomers.by_ref().take(ENDPOINTS_PER_SLICE_MAX).collect();
        if more.is_empty() && !next.is_empty() {
            break;
        }
        next.push((None, more));
    }
    // Empty ones go, but for the last.
    let mut gone = Vec::new();
    let full = next.iter().filter(|(_, e)| !e.is_empty()).count();
    let mut spare = usize::from(full == 0);
    next.retain(|(slice, e)| {
        if !e.is_empty() {
            return true;
        }
        if spare > 0 {
            spare -= 1;
            return true;
        }
        gone.extend(*slice);
        false
    });
    let kept = next.len();
    for (slice, endpoints) in next {
        write.extend(match slice {
            Some(seen) => Action::patch(seen, &filled(s.service, manager, seen.clone(), ports, endpoints), None),
            None => Some(Action::create(&filled(s.service, manager, fresh(s.service, family, cx), ports, endpoints))),
        });
    }
    (kept, gone)
}

/// The same pod at the same address; without a pod, the same address.
fn same_endpoint(a: &Endpoint, b: &Endpoint) -> bool {
    let uid = |e: &Endpoint| e.target_ref.as_ref().and_then(|t| t.uid.clone());
    a.addresses == b.addresses && uid(a) == uid(b)
}

fn fresh(service: &Service, family: &str, cx: &Cx) -> EndpointSlice {
    let prefix = format!("{}-", objects::name(service));
    EndpointSlice {
        address_type: family.into(),
        metadata: ObjectMeta {
            name: Some(format!("{prefix}{}", cx.ids.suffix(5))),
            generate_name: Some(prefix),
            namespace: service.metadata.namespace.clone(),
            owner_references: Some(vec![objects::controller_ref(service)]),
            ..ObjectMeta::default()
        },
        ..EndpointSlice::default()
    }
}

fn filled(service: &Service, manager: &str, mut slice: EndpointSlice, ports: &[Port], endpoints: Vec<Endpoint>) -> EndpointSlice {
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    labels.insert(SERVICE_NAME.into(), objects::name(service).into());
    labels.insert(MANAGED_BY.into(), manager.into());
    if headless(service) {
        labels.insert(HEADLESS.into(), String::new());
    }
    slice.metadata.labels = Some(labels);
    slice.ports = (!ports.is_empty()).then(|| ports.iter().map(Into::into).collect());
    slice.endpoints = endpoints;
    slice
}

pub(super) fn headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|s| s.cluster_ip.as_deref()).is_some_and(|ip| ip == "None" || ip.is_empty())
}
