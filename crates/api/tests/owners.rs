//! Properties of server-side apply and of `managedFields`, over random configurations and random histories.

use api::Value;
use api::apply::apply;
use api::fieldset::{FieldSet, Step};
use api::managed::{Writer, update};
use api::schema;
use base::Timestamp;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use serde_json::{Map, json};

fn writer(manager: &str, second: i64) -> Writer<'_> {
    let now = Timestamp::from_second(1_760_000_000 + second).unwrap();
    Writer { schema: schema::for_api_version("apps/v1", "Deployment"), api_version: "apps/v1", manager, subresource: "", now }
}

/// A map with a few of a few keys.
fn labels() -> impl Strategy<Value = Value> {
    btree_map("[a-c]", "[x-z]", 1..3).prop_map(|m| json!(m))
}

/// A field that may be absent.
fn maybe(value: impl Strategy<Value = Value> + 'static) -> impl Strategy<Value = Value> {
    prop_oneof![2 => value, 1 => Just(Value::Null)]
}

/// Without its nulls.
fn object(fields: Vec<(&str, Value)>) -> Value {
    let given = fields.into_iter().filter(|(_, v)| !v.is_null()).map(|(k, v)| (k.to_string(), v));
    Value::Object(given.collect::<Map<String, Value>>())
}

fn env() -> impl Strategy<Value = Value> {
    btree_map("[A-C]", "[1-3]", 1..3).prop_map(|m| m.into_iter().map(|(name, value)| json!({"name": name, "value": value})).collect())
}

fn ports() -> impl Strategy<Value = Value> {
    btree_map(80..83i64, any::<bool>(), 1..3).prop_map(|m| {
        m.into_iter().map(|(n, named)| if named { json!({"containerPort": n, "name": "p"}) } else { json!({"containerPort": n}) }).collect()
    })
}

fn container() -> impl Strategy<Value = Value> {
    let resources = maybe(btree_map("[a-c]", "[1-3]", 1..3).prop_map(|l| json!({"limits": l})));
    (maybe("[i-k]".prop_map(Value::from)), maybe(env()), maybe(ports()), resources)
        .prop_map(|(image, env, ports, resources)| object(vec![("image", image), ("env", env), ("ports", ports), ("resources", resources)]))
}

fn config() -> impl Strategy<Value = Value> {
    let containers = btree_map("[c-d]", container(), 1..3).prop_map(|m| {
        let named = m.into_iter().map(|(name, mut c)| {
            c["name"] = name.into();
            c
        });
        named.collect::<Value>()
    });
    let pod = (containers, maybe(labels()), maybe((1..3i64).prop_map(|u| json!({"runAsUser": u})))).prop_map(
        |(containers, selector, context)| {
            object(vec![("containers", containers), ("nodeSelector", selector), ("securityContext", context)])
        },
    );
    let spec = (maybe((0..3i64).prop_map(Value::from)), pod, maybe(labels())).prop_map(|(replicas, pod, selector)| {
        let selector = if selector.is_null() { selector } else { json!({"matchLabels": selector}) };
        object(vec![("replicas", replicas), ("template", json!({"spec": pod})), ("selector", selector)])
    });
    (
        spec,
        maybe(labels()),
        maybe(vec("[f-h]", 1..3).prop_map(|mut f| {
            f.sort();
            f.dedup();
            json!(f)
        })),
    )
        .prop_map(|(spec, labels, finalizers)| {
            let meta = object(vec![("name", "web".into()), ("namespace", "ns".into()), ("labels", labels), ("finalizers", finalizers)]);
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": meta, "spec": spec})
        })
}

#[derive(Debug, Clone)]
enum Act {
    Apply(&'static str, Value),
    Update(&'static str, Value),
}

fn act() -> impl Strategy<Value = Act> {
    let who = || prop_oneof![Just("ann"), Just("bob")];
    prop_oneof![(who(), config()).prop_map(|(w, c)| Act::Apply(w, c)), (who(), config()).prop_map(|(w, c)| Act::Update(w, c))]
}

fn owners(object: &Value) -> Vec<(String, FieldSet)> {
    let entries = object["metadata"]["managedFields"].as_array().cloned().unwrap_or_default();
    let one = |e: &Value| (format!("{}/{}", e["manager"], e["operation"]), FieldSet::from_fields_v1(&e["fieldsV1"]).unwrap());
    entries.iter().map(one).collect()
}

fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    object["metadata"].as_object_mut().unwrap().remove("managedFields");
    object
}

/// Whether a path of a field set leads to something in an object.
fn is_there(object: &Value, path: &[Step]) -> bool {
    let Some((first, rest)) = path.split_first() else { return true };
    let list = object.as_array().map_or(&[][..], Vec::as_slice);
    let next = match first {
        // A struct that is no pointer is always there, written or not.
        Step::Field(name) if name == "resources" && rest.is_empty() => return true,
        Step::Field(name) => object.get(name),
        Step::Index(i) => list.get(*i),
        Step::Value(text) => list.iter().find(|v| v.to_string() == *text),
        Step::Key(text) => {
            let keys: Map<String, Value> = serde_json::from_str(text).unwrap();
            list.iter().find(|v| keys.iter().all(|(k, want)| v.get(k) == Some(want) || (k == "protocol" && v.get(k).is_none())))
        }
    };
    next.is_some_and(|v| is_there(v, rest))
}

/// What a history makes of nothing; applies are forced.
fn play(acts: &[Act]) -> Option<Value> {
    let mut live: Option<Value> = None;
    for (i, act) in acts.iter().enumerate() {
        let second = i as i64;
        live = Some(match act {
            Act::Apply(who, config) => apply(&writer(who, second), live.as_ref(), config, true).unwrap(),
            Act::Update(who, config) => {
                let mut after = config.clone();
                update(&writer(who, second), live.as_ref(), &mut after);
                after
            }
        });
    }
    live
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn applying_twice_is_applying_once(acts in vec(act(), 0..5), config in config()) {
        let live = play(&acts);
        let once = apply(&writer("me", 100), live.as_ref(), &config, true).unwrap();
        let twice = apply(&writer("me", 200), Some(&once), &config, false).unwrap();
        prop_assert_eq!(&twice, &once);
    }

    #[test]
    fn what_is_applied_is_there(acts in vec(act(), 0..5), config in config()) {
        let live = play(&acts);
        let after = apply(&writer("me", 100), live.as_ref(), &config, true).unwrap();
        let again = apply(&Writer { manager: "other", ..writer("", 200) }, Some(&after), &config, false).unwrap();
        prop_assert_eq!(bare(&again), bare(&after), "who applies what is there changes nothing and conflicts with nobody");
    }

    #[test]
    fn owners_own_what_exists(acts in vec(act(), 1..8)) {
        let live = play(&acts).unwrap();
        for (who, fields) in owners(&live) {
            prop_assert!(!fields.is_empty(), "{} owns nothing and is listed", who);
            for path in fields.paths() {
                prop_assert!(is_there(&live, &path), "{} owns {} of {}", who, api::fieldset::show(&path), bare(&live));
            }
        }
    }

    #[test]
    fn who_applied_alone_can_take_it_all_back(config in config()) {
        let after = apply(&writer("me", 0), None, &config, false).unwrap();
        let nothing = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web", "namespace": "ns"}});
        let left = apply(&writer("me", 1), Some(&after), &nothing, false).unwrap();
        prop_assert_eq!(bare(&left), nothing);
    }

    #[test]
    fn sets_round_trip(acts in vec(act(), 1..5)) {
        for (_, fields) in owners(&play(&acts).unwrap()) {
            prop_assert_eq!(FieldSet::from_fields_v1(&fields.to_fields_v1()).unwrap(), fields);
        }
    }
}
