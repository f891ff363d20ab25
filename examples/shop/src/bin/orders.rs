//! Orders: takes them, asks the catalogue for the price, and keeps them in a file that outlives a crash of its process.

use std::io::Write;
use std::sync::Mutex;

use serde_json::{Value, json};
use shop::{Response, call, instance, serve, version};

fn path() -> String {
    std::env::var("ORDERS").unwrap_or_else(|_| "/data/orders.jsonl".into())
}

fn load() -> Vec<Value> {
    std::fs::read_to_string(path()).unwrap_or_default().lines().filter_map(|l| serde_json::from_str(l).ok()).collect()
}

fn take(lock: &Mutex<()>, item: &str) -> Result<Value, String> {
    let priced = call("catalogue", "GET", &format!("/items/{item}"), b"")?;
    let _one = lock.lock().unwrap_or_else(|e| e.into_inner());
    let order = json!({ "number": load().len() + 1, "item": priced["name"], "price": priced["price"], "taken_by": instance() });
    let mut file = std::fs::OpenOptions::new().create(true).append(true).open(path()).map_err(|e| format!("{}: {e}", path()))?;
    file.write_all(format!("{order}\n").as_bytes()).and_then(|()| file.sync_all()).map_err(|e| e.to_string())?;
    println!("order {} for {}", order["number"], order["item"]);
    Ok(order)
}

fn main() -> std::io::Result<()> {
    let lock = Mutex::new(());
    serve("orders", move |request| match (request.method.as_str(), request.path.as_str()) {
        ("GET", "/orders") => Response::json(&json!({ "orders": load(), "instance": instance(), "version": version() })),
        ("POST", "/orders") => match take(&lock, String::from_utf8_lossy(&request.body).trim()) {
            Ok(order) => Response::json(&order),
            Err(why) => Response::text(502, &why),
        },
        _ => Response::text(404, "try GET or POST /orders"),
    })
}
