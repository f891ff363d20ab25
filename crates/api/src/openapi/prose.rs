//! The texts of `kubectl explain`: what `k8s-openapi` says of the types that a group's kinds are made of.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    apps::v1 as apps, authentication::v1 as authn, authorization::v1 as authz, autoscaling::v1 as autoscaling1,
    autoscaling::v2 as autoscaling2, batch::v1 as batch, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
    events::v1 as events, networking::v1 as networking, node::v1 as node, policy::v1 as policy, rbac::v1 as rbac,
    scheduling::v1 as scheduling, storage::v1 as storage,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1 as meta;
use k8s_openapi::schemars::{SchemaGenerator, generate::SchemaSettings};
use serde_json::Value;

/// Texts by type name, then by property; the type's own text is at the empty property.
pub(super) struct Prose(BTreeMap<String, BTreeMap<String, String>>);

impl Prose {
    pub(super) fn none() -> Self {
        Self(BTreeMap::new())
    }

    pub(super) fn of_type(&self, name: &str) -> Option<&str> {
        self.of_field(name, "")
    }

    pub(super) fn of_field(&self, name: &str, field: &str) -> Option<&str> {
        self.0.get(name)?.get(field).map(String::as_str)
    }
}

/// Has the generator meet the types, and with them all that they are made of.
macro_rules! meet {
    ($generator:ident, $($ty:ty),+ $(,)?) => {{ $( $generator.subschema_for::<$ty>(); )+ }};
}

fn kinds(g: &mut SchemaGenerator, group: &str, version: &str) {
    match (group, version) {
        ("", _) => {
            meet!(g, core::Binding, core::ConfigMap, core::Endpoints, core::Event, core::LimitRange, core::Namespace, core::Node);
            meet!(g, core::PersistentVolume, core::PersistentVolumeClaim, core::Pod, core::PodTemplate, core::ReplicationController);
            meet!(g, core::ResourceQuota, core::Secret, core::Service, core::ServiceAccount, authn::TokenRequest, policy::Eviction);
        }
        ("apps", _) => meet!(g, apps::ControllerRevision, apps::DaemonSet, apps::Deployment, apps::ReplicaSet, apps::StatefulSet),
        ("batch", _) => meet!(g, batch::CronJob, batch::Job),
        ("autoscaling", "v1") => meet!(g, autoscaling1::HorizontalPodAutoscaler),
        ("autoscaling", _) => meet!(g, autoscaling2::HorizontalPodAutoscaler),
        ("networking.k8s.io", _) => meet!(g, networking::Ingress, networking::IngressClass, networking::NetworkPolicy),
        ("discovery.k8s.io", _) => meet!(g, discovery::EndpointSlice),
        ("rbac.authorization.k8s.io", _) => meet!(g, rbac::ClusterRole, rbac::ClusterRoleBinding, rbac::Role, rbac::RoleBinding),
        ("coordination.k8s.io", _) => meet!(g, coordination::Lease),
        ("node.k8s.io", _) => meet!(g, node::RuntimeClass),
        ("policy", _) => meet!(g, policy::Eviction, policy::PodDisruptionBudget),
        ("scheduling.k8s.io", _) => meet!(g, scheduling::PriorityClass),
        ("storage.k8s.io", _) => meet!(g, storage::StorageClass, storage::CSIDriver, storage::CSINode, storage::VolumeAttachment),
        ("events.k8s.io", _) => meet!(g, events::Event),
        ("authentication.k8s.io", _) => meet!(g, authn::SelfSubjectReview, authn::TokenRequest, authn::TokenReview),
        ("authorization.k8s.io", _) => {
            meet!(g, authz::LocalSubjectAccessReview, authz::SelfSubjectAccessReview, authz::SelfSubjectRulesReview);
            meet!(g, authz::SubjectAccessReview);
        }
        _ => {}
    }
    meet!(g, autoscaling1::Scale, meta::DeleteOptions, meta::ObjectMeta, meta::ListMeta, meta::Status);
}

/// The texts of one group and version.
pub(super) fn of(group: &str, version: &str) -> Prose {
    let mut generator = SchemaSettings::openapi3().into_generator();
    kinds(&mut generator, group, version);
    let text = |v: &Value| v.get("description").and_then(Value::as_str).map(str::to_owned);
    let types = generator.take_definitions(false).into_iter().map(|(name, schema)| {
        let mut texts: BTreeMap<String, String> = text(&schema).into_iter().map(|t| (String::new(), t)).collect();
        let properties = schema.get("properties").and_then(Value::as_object);
        texts.extend(properties.into_iter().flatten().filter_map(|(field, v)| Some((field.clone(), text(v)?))));
        (name, texts)
    });
    Prose(types.collect())
}
