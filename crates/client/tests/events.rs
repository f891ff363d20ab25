//! Events: counted instead of repeated, bounded, never in the way.

use std::time::Duration;

use api::Status;
use base::{Clock, Ids, ManualClock, Timestamp};
use client::fake::FakeServer;
use client::{DeleteOptions, Recorder, reference};
use k8s_openapi::api::core::v1::{Event, Node, Pod};
use serde_json::json;

fn pod(name: &str) -> Pod {
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop", "uid": format!("uid-{name}")}})).unwrap()
}

async fn settle() {
    tokio::time::sleep(Duration::from_secs(1)).await;
}

#[tokio::test(start_paused = true)]
async fn the_same_again_is_counted_and_what_differs_is_told() {
    let server = FakeServer::new();
    let client = server.client();
    let clock = ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap());
    let recorder = Recorder::start(&client, clock.clone(), Ids::seeded(1), "kubelet", "n1");
    let web = reference(&pod("web"));
    for _ in 0..3 {
        recorder.warning(&web, "BackOff", "Back-off restarting failed container");
        clock.advance(Duration::from_secs(10));
    }
    recorder.normal(&web, "Pulled", "Successfully pulled image");
    recorder.warning(&reference(&pod("other")), "BackOff", "Back-off restarting failed container");
    settle().await;
    let events = server.objects("/api/v1/events");
    assert_eq!(events.len(), 3);
    let event = events.iter().find(|e| e["reason"] == "BackOff" && e["involvedObject"]["name"] == "web").unwrap();
    assert_eq!(event["count"], 3);
    assert_eq!((event["type"].as_str(), event["source"]["component"].as_str()), (Some("Warning"), Some("kubelet")));
    assert_eq!(event["firstTimestamp"], "2027-01-15T08:00:00Z");
    assert_eq!(event["lastTimestamp"], "2027-01-15T08:00:20Z");
    assert_eq!(event["involvedObject"]["uid"], "uid-web");
    assert!(event["metadata"]["name"].as_str().unwrap().starts_with("web."));
}

#[tokio::test(start_paused = true)]
async fn an_expired_event_is_written_anew_and_a_refused_one_does_not_stop_the_rest() {
    let server = FakeServer::new();
    let client = server.client();
    let clock = ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap());
    let recorder = Recorder::start(&client, clock.clone(), Ids::seeded(1), "kubelet", "");
    let about = reference(&pod("web"));
    recorder.normal(&about, "Started", "Started container");
    settle().await;
    let name = server.objects("/api/v1/events")[0]["metadata"]["name"].as_str().unwrap().to_string();
    client.delete::<Event>("shop", &name, &DeleteOptions::default()).await.unwrap();
    recorder.normal(&about, "Started", "Started container");
    settle().await;
    assert_eq!(server.objects("/api/v1/events")[0]["count"], 2);
    server.fail_next(Status::forbidden("", "events", "", "not you"));
    recorder.normal(&about, "Lost", "this one is refused");
    recorder.normal(&about, "Killing", "Stopping container");
    settle().await;
    let reasons: Vec<_> = server.objects("/api/v1/events").iter().map(|e| e["reason"].as_str().unwrap().to_string()).collect();
    assert!(reasons.contains(&"Killing".into()) && !reasons.contains(&"Lost".into()), "{reasons:?}");
}

#[tokio::test(start_paused = true)]
async fn an_object_that_shouts_is_bounded_and_nodes_events_live_in_default() {
    let server = FakeServer::new();
    let clock = ManualClock::at(Timestamp::from_second(1_800_000_000).unwrap());
    let recorder = Recorder::start(&server.client(), clock.clone(), Ids::seeded(1), "node-controller", "");
    let node: Node = serde_json::from_value(json!({"metadata": {"name": "n1", "uid": "u"}})).unwrap();
    for i in 0..200 {
        recorder.normal(&reference(&node), "Noise", format!("message {i}"));
    }
    settle().await;
    let events = server.objects("/api/v1/events");
    assert_eq!(events.len(), client::limits::RECORDER_BURST as usize);
    assert!(events.iter().all(|e| e["metadata"]["namespace"] == "default"));
    clock.advance(client::limits::RECORDER_REFILL);
    recorder.normal(&reference(&node), "Noise", "later");
    settle().await;
    assert_eq!(server.objects("/api/v1/events").len(), events.len() + 1);
    let _ = clock.now();
}
