//! The catalogue: what the shop sells, read from a ConfigMap that may change while it runs.

use serde_json::{Value, json};
use shop::{Response, instance, serve, version};

fn items() -> Value {
    let path = std::env::var("ITEMS").unwrap_or_else(|_| "/etc/shop/items.json".into());
    let text = std::fs::read_to_string(path).unwrap_or_else(|_| r#"[{"id":"tea","name":"Tea","price":4}]"#.into());
    serde_json::from_str(&text).unwrap_or_else(|e| json!([{ "id": "error", "name": e.to_string(), "price": 0 }]))
}

fn main() -> std::io::Result<()> {
    serve("catalogue", |request| match request.path.strip_prefix("/items") {
        Some("" | "/") => Response::json(&json!({ "items": items(), "instance": instance(), "version": version() })),
        Some(id) => {
            let wanted = id.trim_start_matches('/');
            match items().as_array().into_iter().flatten().find(|item| item["id"] == wanted) {
                Some(item) => Response::json(item),
                None => Response::text(404, &format!("no item {wanted:?}")),
            }
        }
        None => Response::text(404, "try /items"),
    })
}
